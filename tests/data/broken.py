"""Data sets with broken records in them, for tests here and of training."""

import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

SIZE = 32
# As many as there are digits: a network for these is compiled once for all tests.
CLASSES = 10


def jpeg(seed: int) -> bytes:
    """A smooth picture of 12 x 12 pixels."""
    coarse = np.random.default_rng(seed).integers(256, size=(3, 3, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((12, 12)).save(buffer, "JPEG")
    return buffer.getvalue()


CUT = jpeg(0)[:-100]
# What follows the end of an image is no part of it; noise is stored as it is.
TAIL = np.random.default_rng(0).bytes(999)
BROKEN = {0: CUT[:25], 3: CUT, 4: b"", 11: b"<html>404</html>"}
"""What the records of these numbers hold; 3 and 4 are neighbours as they are stored."""


class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Of the first four classes, stored in order; `images` stand in by number."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, images: Mapping[int, bytes], size: int = SIZE, **options):
        self._images = images
        self._size = size
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "file_name": tfds.features.Text(),
            "label": tfds.features.ClassLabel(num_classes=CLASSES),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        return {"train": self._generate_examples(), "test": self._generate_examples()}

    def _generate_examples(self):
        for i in range(self._size):
            image = self._images.get(i, jpeg(i))
            yield i, {"image": image, "file_name": f"{i}.JPEG", "label": i % 4}


def write_pictures(data_dir: Path, images: Mapping[int, bytes] = BROKEN, size: int = SIZE) -> Path:
    """Prepares "pictures"; returns the folder of its files."""
    builder = Pictures(data_dir=data_dir, file_format="array_record", images=images, size=size)
    builder.download_and_prepare()
    return Path(builder.data_dir)


def damage(folder: Path, split: str) -> None:
    """Flips a bit of the record that ends with TAIL."""
    (file,) = folder.glob(f"*-{split}.array_record-*")
    content = bytearray(file.read_bytes())
    content[content.index(TAIL)] ^= 1
    file.write_bytes(content)


def write_coco_folder(data_dir: Path, images: Mapping[int, bytes], size: int = SIZE) -> None:
    """A COCO folder of such pictures, each with one box, as train and as validation."""
    for split in ("train", "validation"):
        (data_dir / split).mkdir(parents=True)
        for i in range(size):
            (data_dir / split / f"{i}.jpg").write_bytes(images.get(i, jpeg(i)))
        content = {
            "images": [
                {"id": 100 + i, "file_name": f"{i}.jpg", "height": 12, "width": 12}
                for i in range(size)
            ],
            "annotations": [
                {"image_id": 100 + i, "category_id": 1 + i % 4, "bbox": [2, 2, 8, 8]}
                for i in range(size)
            ],
            "categories": [{"id": i + 1, "name": str(i)} for i in range(CLASSES)],
        }
        (data_dir / split / "instances.json").write_text(json.dumps(content))
