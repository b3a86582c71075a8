"""Opening prepared TFDS data sets of any kind from array_record files, without TensorFlow."""

import os
import re
from pathlib import Path

import tensorflow_datasets as tfds

from sasa_jax.checks import nearest
from sasa_jax.data.catalog import (
    FILE_FORMAT,
    OWN_DATASETS,
    DatasetError,
    DatasetName,
    check_known,
    find_prepared,
    known_names,
    prepare_command,
    resolve_data_dir,
)
from sasa_jax.data.embedded import prepare_embedded


def open_builder(
    name: str, split: str, data_dir: str | os.PathLike[str] | None
) -> tfds.core.DatasetBuilder:
    """The builder of a prepared data set that has `split`; its features are not looked at.

    Args: see `sources.open_split`.

    Raises:
      DatasetError: unknown name or split (the nearest is suggested); not prepared, or in another
        file format (with the command that prepares it).
    """
    parsed = DatasetName.parse(name)
    folder = resolve_data_dir(data_dir)
    path = find_prepared(parsed, folder)
    if path is None and name in OWN_DATASETS:
        prepare_embedded(name, folder)
        path = find_prepared(parsed, folder)
    if path is None:
        raise _absent(parsed, folder)
    builder = tfds.builder_from_directory(path)
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    if FILE_FORMAT not in formats:
        raise wrong_format(parsed, folder, path, formats)
    _check_split(builder, split)
    return builder


def full_name(builder: tfds.core.DatasetBuilder) -> str:
    """The data set as `open_builder` takes it, with its version: "coco/2017:1.1.0"."""
    info = builder.info
    return str(DatasetName(info.name, info.config_name or None, str(info.version)))


def wrong_format(name: DatasetName, data_dir: Path, path: Path, formats: set[str]) -> DatasetError:
    """The error for a data set whose files need TensorFlow to read."""
    # TFDS never writes a second format next to the first, so the command names a new folder.
    other = data_dir.with_name(f"{data_dir.name}_{FILE_FORMAT}")
    if name.name in known_names():
        command = f"prepare it in another:\n  {prepare_command(name, other)}"
    else:
        command = f"let its builder write it to another, with file_format={FILE_FORMAT!r}."
    return DatasetError(
        f"{name} in {path} is stored as {' and '.join(sorted(formats))}; {FILE_FORMAT} is needed, "
        f"which is read without TensorFlow. TFDS keeps one format per folder, so {command}"
    )


def _absent(name: DatasetName, data_dir: Path) -> DatasetError:
    check_known(name.name)
    version = name.version or "<version>"
    where = data_dir.joinpath(*filter(None, (name.name, name.config, version)))
    prepared = "" if data_dir.is_dir() else f" ({data_dir} does not exist)"
    return DatasetError(
        f"{name} is not prepared: looked for {where}/dataset_info.json{prepared}. Prepare it with"
        f"\n  {prepare_command(name, data_dir)}\nor name the folder that holds it in data_dir."
    )


def _check_split(builder: tfds.core.DatasetBuilder, split: str) -> None:
    available = [*builder.info.splits, "all"]
    for part in split.split("+"):
        name = re.split(r"[\[\s]", part.strip(), maxsplit=1)[0]
        if name not in available:
            raise DatasetError(
                f"split is {split!r}; {builder.info.full_name} has no {name!r}"
                f"{nearest(name, available)}; it has {', '.join(available[:-1])}, and slices of "
                "them such as 'train[:1000]' or 'train[4%:]'."
            )
    try:
        examples = builder.info.splits[split].num_examples
    except ValueError as error:
        raise DatasetError(
            f"split is {split!r}, which TFDS cannot read: {error}. Examples of slices: "
            "'train[:1000]', 'train[4%:]', 'train[:50%]+test'."
        ) from error
    if not examples:
        raise DatasetError(f"split is {split!r}, which holds no example; take a larger slice.")
