"""The stored records of a TFDS split, in array_record files."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader

from sasa_jax.data.catalog import DatasetError
from sasa_jax.data.corrupt import CorruptRecord

# In the errors of array_record, which have no class of their own, about content.
_DAMAGED = "Riegeli/records file: "


class Records:
    """A random-access sequence of dicts of features; images stay the file's bytes.

    Safe to read from several threads, and can be pickled. A record whose checksum is wrong raises
    CorruptRecord.

    Raises:
      DatasetError: a file is missing, cut short or of another data set.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
        self._files = builder.info.splits[split].file_instructions
        _check(self._files)
        self._source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return self._source[index]
        except RuntimeError as error:
            if _DAMAGED not in str(error):
                raise
            reason = str(error).split(_DAMAGED, 1)[1]
            raise CorruptRecord(f"{reason}, in {self._file_of(index)}") from error

    def _file_of(self, index: int) -> str:
        for file in self._files:
            if index < file.take:
                break
            index -= file.take
        return os.path.basename(file.filename)


def _check(files: Sequence[Any]) -> None:
    """Opens every file: one that was not copied to its end lacks its index, which stands last."""
    # Of many files on a network's disk each takes a while.
    with ThreadPoolExecutor(16) as pool:
        faults = list(pool.map(_fault, files))
    broken = [(file.filename, fault) for file, fault in zip(files, faults, strict=True) if fault]
    if broken:
        name, fault = broken[0]
        raise DatasetError(
            f"{len(broken):,} of {len(files):,} files cannot be read; the first is {name}: {fault}"
            ". Copy or prepare the data set anew."
        )


def _fault(file: Any) -> str | None:
    reader = ArrayRecordReader(os.fspath(file.filename))
    number = reader.num_records()
    try:
        reader.close()
    except RuntimeError as error:
        return str(error) or "its index is missing"
    if number != file.examples_in_shard:
        return f"it holds {number:,} records, and dataset_info.json says {file.examples_in_shard:,}"
    return None
