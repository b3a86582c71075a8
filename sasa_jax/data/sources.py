"""Splits of classification data sets: of TFDS, read without TensorFlow, and folders of images."""

import os
from pathlib import Path

import tensorflow_datasets as tfds

from sasa_jax.data.builders import full_name, open_builder
from sasa_jax.data.catalog import IMAGE_FOLDER, DatasetError
from sasa_jax.data.corrupt import CorruptRecord
from sasa_jax.data.image_folder import ImageFolder
from sasa_jax.data.records import Records


class Split:
    """One split of a data set: a random-access sequence of examples.

    `split[i]` is {"image": the file's JPEG or PNG bytes, "label": int in [0, num_classes), "index":
    i}, and "file_name" where the data set has it; CorruptRecord where it cannot be used, as in a
    split without labels (ImageNet's test); IndexError outside 0 <= i < len(split). Safe to read
    from several threads, and can be pickled.

    Attributes:
      name: the data set as TFDS spells it, e.g. "imagenet2012:5.1.0".
      split: the split string, e.g. "train[4%:]".
      class_names: one str per class, in label order.
      num_classes: int.
      data_dir: the folder of the files.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
        features = builder.info.features
        self.name = full_name(builder)
        self.split = split
        self.class_names: tuple[str, ...] = tuple(features["label"].names)
        self.num_classes: int = features["label"].num_classes
        self.data_dir = Path(builder.data_dir)
        self._records = Records(builder, split)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, bytes | int | str]:
        if not 0 <= index < len(self):
            raise IndexError(f"index is {index}; {self!r} has the examples 0 to {len(self) - 1}.")
        stored = self._records[index]
        example = {"image": stored["image"], "label": int(stored["label"]), "index": int(index)}
        if isinstance(stored.get("file_name"), bytes):
            example["file_name"] = stored["file_name"].decode(errors="replace")
        if not 0 <= example["label"] < self.num_classes:
            reason = f"its label is {example['label']}; expected 0 to {self.num_classes - 1}"
            raise CorruptRecord(reason, example.get("file_name"))
        return example

    def __repr__(self) -> str:
        return f"Split({self.description})"

    @property
    def description(self) -> str:
        """One line for the first screen of a run."""
        return (
            f"{self.name} {self.split}: {len(self):,} images, {self.num_classes:,} classes, "
            f"{self.data_dir}"
        )


def open_split(
    name: str, split: str, data_dir: str | os.PathLike[str] | None = None
) -> Split | ImageFolder:
    """Open one split of a classification data set.

    Args:
      name: TFDS's name: "imagenet2012", "name/config", "name:1.2.3" or "name/config:1.2.3"; the
        newest prepared version unless one is named. "digits" is prepared on first use. Or
        "image_folder" for a folder with a subfolder of images for each class, see image_folder.
      split: TFDS's split string: "train", "test", a slice such as "train[:1200]" or "train[4%:]",
        or a sum of these. TFDS stores the examples of a data set (but not of digits) in the order
        of a hash of their keys, so a slice is a random subset that never changes: "train[4%:]" and
        "train[:4%]" are ImageNet's training set and the paper's held-out 4 % (section 5). Of an
        image folder the name of the subfolder.
      data_dir: where data sets are kept; None is $TFDS_DATA_DIR, else ~/tensorflow_datasets. For
        "image_folder" the folder that holds the splits, which has no default.

    Raises:
      DatasetError: unknown name or split (the nearest is suggested); not prepared, or in another
        file format (with the command that prepares it); no image and label among its features; a
        file that is missing or cut short.
    """
    if name == IMAGE_FOLDER:
        return ImageFolder(data_dir, split)
    builder = open_builder(name, split, data_dir)
    _check_features(builder)
    return Split(builder, split)


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
