"""Splits of TFDS classification data sets, read from array_record files without TensorFlow."""

import os
import re
from pathlib import Path

import tensorflow_datasets as tfds

from sasa_jax.checks import nearest
from sasa_jax.data.catalog import (
    FILE_FORMAT,
    DatasetError,
    DatasetName,
    check_known,
    find_prepared,
    known_names,
    prepare_command,
    resolve_data_dir,
)
from sasa_jax.data.digits import prepare_digits


class Split:
    """One split of a data set: a random-access sequence of examples.

    `split[i]` is {"image": the file's JPEG or PNG bytes, "label": int in [0, num_classes), "index":
    i}; the label is -1 where the data set has none (ImageNet's test split). IndexError outside
    0 <= i < len(split). Safe to read from several threads, and can be pickled.

    Attributes:
      name: the data set as TFDS spells it, e.g. "imagenet2012:5.1.0".
      split: the split string, e.g. "train[4%:]".
      class_names: one str per class, in label order.
      num_classes: int.
      data_dir: the folder of the files.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
        features = builder.info.features
        self.name = str(
            DatasetName(
                builder.info.name,
                builder.info.config_name or None,
                str(builder.info.version),
            )
        )
        self.split = split
        self.class_names: tuple[str, ...] = tuple(features["label"].names)
        self.num_classes: int = features["label"].num_classes
        self.data_dir = Path(builder.data_dir)
        self._source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, bytes | int]:
        if not 0 <= index < len(self):
            raise IndexError(f"index is {index}; {self!r} has the examples 0 to {len(self) - 1}.")
        example = self._source[index]
        return {"image": example["image"], "label": int(example["label"]), "index": int(index)}

    def __repr__(self) -> str:
        return f"Split({self.description})"

    @property
    def description(self) -> str:
        """One line for the first screen of a run."""
        return (
            f"{self.name} {self.split}: {len(self):,} images, {self.num_classes:,} classes, "
            f"{self.data_dir}"
        )


def open_split(name: str, split: str, data_dir: str | os.PathLike[str] | None = None) -> Split:
    """Open one split of a prepared TFDS classification data set.

    Args:
      name: TFDS's name: "imagenet2012", "name/config", "name:1.2.3" or "name/config:1.2.3"; the
        newest prepared version unless one is named. "digits" is prepared on first use.
      split: TFDS's split string: "train", "test", a slice such as "train[:1200]" or "train[4%:]",
        or a sum of these. TFDS stores the examples of a data set (but not of digits) in the order
        of a hash of their keys, so a slice is a random subset that never changes: "train[4%:]" and
        "train[:4%]" are ImageNet's training set and the paper's held-out 4 % (section 5).
      data_dir: where data sets are kept; None is $TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Raises:
      DatasetError: unknown name or split (the nearest is suggested); not prepared, or in another
        file format (with the command that prepares it); no image and label among its features.
    """
    parsed = DatasetName.parse(name)
    folder = resolve_data_dir(data_dir)
    path = find_prepared(parsed, folder)
    if path is None and parsed == DatasetName("digits"):
        prepare_digits(folder)
        path = find_prepared(parsed, folder)
    if path is None:
        raise _absent(parsed, folder)
    builder = tfds.builder_from_directory(path)
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    if FILE_FORMAT not in formats:
        raise wrong_format(parsed, folder, path, formats)
    _check_features(builder)
    _check_split(builder, split)
    return Split(builder, split)


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


def _check_features(builder: tfds.core.DatasetBuilder) -> None:
    features = builder.info.features
    found = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    if not isinstance(found.get("image"), tfds.features.Image) or not isinstance(
        found.get("label"), tfds.features.ClassLabel
    ):
        listed = ", ".join(f"{key}: {type(value).__name__}" for key, value in sorted(found.items()))
        raise DatasetError(
            f"{builder.info.full_name} is no image classification data set: its features are "
            f"{listed or type(features).__name__}; needed are image: Image and label: ClassLabel."
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
