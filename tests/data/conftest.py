import tarfile
from pathlib import Path

import pytest

from sasa_jax.data import open_split


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_dir in which digits are prepared."""
    folder = tmp_path_factory.mktemp("tfds")
    open_split("digits", "train", folder)
    return folder


@pytest.fixture(scope="session")
def coco_tiny(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 + 80 images of COCO: train2017/, val2017/ and annotations/instances_*2017.json."""
    folder = tmp_path_factory.mktemp("coco_tiny")
    with tarfile.open(shared_data / "coco_tiny" / "coco_tiny.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    return folder
