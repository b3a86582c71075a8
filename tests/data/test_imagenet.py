"""ImageNet's records, with real ImageNet JPEGs, from files to batches."""

import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from sasa_jax.data import Split, eval_loader, make_transform, open_split, train_loader


@pytest.fixture(scope="module")
def images(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked subset: train/<synset>/*.JPEG and val/<synset>/*.JPEG."""
    folder = tmp_path_factory.mktemp("imagenette")
    with tarfile.open(shared_data / "imagenette224" / "imagenette224.tar") as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def synset_of(images: Path) -> Callable[[dict], str]:
    """The folder from which an example's bytes came."""
    folders = {path.read_bytes(): path.parent.name for path in images.glob("*/*/*.JPEG")}
    return lambda example: folders[example["image"]]


class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The features, names and keys of TFDS's builder, which itself needs TensorFlow to write."""

    VERSION = tfds.core.Version("5.1.0")
    images: Path

    def _info(self) -> tfds.core.DatasetInfo:
        official = tfds.builder_cls("imagenet2012")(data_dir=self.images / "unused")
        return tfds.core.DatasetInfo(builder=self, features=official.info.features)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        return {
            "train": self._generate_examples("train"),
            "validation": self._generate_examples("val"),
        }

    def _generate_examples(self, folder: str):
        for path in sorted((self.images / folder).glob("*/*.JPEG")):
            yield path.name, {"image": path, "label": path.parent.name, "file_name": path.name}


@pytest.fixture(scope="module")
def data_dir(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imagenet_tfds")
    Imagenet2012.images = images
    Imagenet2012(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def check_labels(split: Split, synset_of: Callable[[dict], str], size: int) -> None:
    assert len(split) == size and split.num_classes == 1000
    for i in range(size):
        example = split[i]
        assert split.class_names[example["label"]] == synset_of(example)
        assert example["index"] == i


def test_labels_and_bytes(data_dir, synset_of):
    """Every stored file is a JPEG of the subset, byte for byte, under its synset."""
    check_labels(open_split("imagenet2012", "train", data_dir), synset_of, 2000)
    check_labels(open_split("imagenet2012", "validation", data_dir), synset_of, 500)


def test_held_out_split_is_a_random_part(data_dir):
    """TFDS stores hashed order, so the first 4 % hold all classes alike, and the rest the rest."""
    held_out = open_split("imagenet2012", "train[:4%]", data_dir)
    kept = open_split("imagenet2012", "train[4%:]", data_dir)
    assert (len(held_out), len(kept)) == (80, 1920)
    parts = [{split[i]["image"] for i in range(len(split))} for split in (held_out, kept)]
    assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 2000
    counts = np.bincount([held_out[i]["label"] for i in range(80)])
    counts = counts[counts > 0]
    # 8 of each class expected; chi-squared with 9 degrees of freedom, one in a thousand.
    assert ((counts - 8) ** 2 / 8).sum() + 8 * (10 - len(counts)) < 27.9


def test_training_batches(data_dir):
    train = open_split("imagenet2012", "train[4%:]", data_dir)
    transform = make_transform("crop_flip", 64, train=True)
    loader = train_loader(train, transform, batch_size=32, seed=0)
    batch = next(loader)
    assert batch["image"].shape == (32, 64, 64, 3)
    assert [train[i]["label"] for i in batch["index"]] == batch["label"].tolist()
    state = loader.get_state()
    expected = next(loader)
    loader.set_state(state)
    again = next(loader)
    for key, value in expected.items():
        np.testing.assert_array_equal(again[key], value)
    assert "tensorflow" not in sys.modules


def test_evaluation_scores_all_500(data_dir):
    validation = open_split("imagenet2012", "validation", data_dir)
    transform = make_transform("crop_flip", 64, train=False)
    labels = {}
    for process in range(2):
        loader = eval_loader(
            validation, transform, batch_size=96, process_index=process, process_count=2
        )
        for batch in loader:
            seen = zip(batch["index"][batch["mask"]], batch["label"][batch["mask"]], strict=True)
            labels.update(seen)
    assert labels == {i: validation[i]["label"] for i in range(500)}


@pytest.mark.slow
def test_official_builder(images, shared_data, synset_of, tmp_path):
    """ImageNet's two tars through our command and TFDS's own builder."""
    pytest.importorskip("tensorflow", reason="TFDS's imagenet2012 builder needs TensorFlow")
    manual, data = tmp_path / "manual", tmp_path / "data"
    pack = [sys.executable, shared_data / "make_mini_imagenet.py", "pack", "--manual", manual]
    subprocess.run([*pack, "--train", images / "train", "--val", images / "val"], check=True)
    command = [sys.executable, "-m", "sasa_jax.data.prepare", "imagenet2012"]
    command += ["--data_dir", data, "--manual_dir", manual]
    for words in ("Expected time", "already prepared"):
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert words in run.stdout
    check_labels(open_split("imagenet2012", "train", data), synset_of, 2000)
    check_labels(open_split("imagenet2012", "validation", data), synset_of, 500)
