"""Finding data sets on disk, and what is said when they cannot be read."""

import json
import shutil
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from sasa_jax.data import DatasetError, open_split
from sasa_jax.data.catalog import DatasetName, find_prepared, resolve_data_dir


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cifar10", DatasetName("cifar10")),
        ("imagenet_v2/topimages", DatasetName("imagenet_v2", "topimages")),
        ("imagenet2012:5.1.0", DatasetName("imagenet2012", None, "5.1.0")),
        ("a/b-c:10.2.3", DatasetName("a", "b-c", "10.2.3")),
    ],
)
def test_names(text, expected):
    assert DatasetName.parse(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize("text", ["", "a b", "a:1", "../etc", "a/", "a:1.0.0/b"])
def test_bad_names(text):
    with pytest.raises(DatasetError, match="expected TFDS's form"):
        DatasetName.parse(text)


def test_newest_version_and_only_config(tmp_path):
    def touch(*parts: str) -> None:
        folder = tmp_path.joinpath(*parts)
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").touch()

    touch("set", "2.9.0")
    touch("set", "2.10.0")
    touch("set", "incomplete.ABC_3.0.0")
    (tmp_path / "set" / "4.0.0").mkdir()  # no dataset_info.json: never finished
    assert find_prepared(DatasetName("set"), tmp_path).name == "2.10.0"
    assert find_prepared(DatasetName("set", version="2.9.0"), tmp_path).name == "2.9.0"
    assert find_prepared(DatasetName("set", version="1.0.0"), tmp_path) is None
    assert find_prepared(DatasetName("other"), tmp_path) is None

    touch("configs", "a", "1.0.0")
    assert find_prepared(DatasetName("configs"), tmp_path).parts[-2:] == ("a", "1.0.0")
    touch("configs", "b", "1.0.0")
    with pytest.raises(DatasetError, match=r"several configs.*a, b"):
        find_prepared(DatasetName("configs"), tmp_path)
    assert find_prepared(DatasetName("configs", "b"), tmp_path).parts[-2] == "b"


def test_default_data_dir(monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    assert resolve_data_dir(None) == Path.home() / "tensorflow_datasets"
    monkeypatch.setenv("TFDS_DATA_DIR", "/elsewhere")
    assert resolve_data_dir(None) == Path("/elsewhere")
    assert resolve_data_dir("/given") == Path("/given")


def test_unknown_name(tmp_path):
    with pytest.raises(DatasetError, match="did you mean 'imagenet2012'"):
        open_split("imagnet2012", "train", tmp_path)


@pytest.mark.parametrize(("name", "manual"), [("imagenet2012", " --manual_dir M"), ("cifar10", "")])
def test_absent_names_the_command(tmp_path, name, manual):
    with pytest.raises(DatasetError) as error:
        open_split(name, "train", tmp_path)
    lines = str(error.value).splitlines()
    assert f"python -m sasa_jax.data.prepare {name} --data_dir {tmp_path}{manual}" in [
        line.strip() for line in lines
    ]
    assert f"{tmp_path}/{name}/<version>" in lines[0]


@pytest.mark.parametrize("split", ["tset", "train+tset", "tset[:50%]"])
def test_mistyped_split(data_dir, split):
    with pytest.raises(DatasetError, match=r"did you mean 'test'.*train, test"):
        open_split("digits", split, data_dir)


@pytest.mark.parametrize("split", ["train[:0]", "train[5%:3x]", "train[1:2:3:4]"])
def test_bad_slice(data_dir, split):
    with pytest.raises(DatasetError, match="split is 'train"):
        open_split("digits", split, data_dir)


@pytest.mark.parametrize(
    ("split", "size"), [("train[:50%]+test", 718 + 360), ("all", 1797), ("test[-10:]", 10)]
)
def test_tfds_split_strings(data_dir, split, size):
    assert len(open_split("digits", split, data_dir)) == size


def _copy_digits(data_dir: Path, target: Path, file: str, edit) -> Path:
    shutil.copytree(data_dir / "digits", target / "digits")
    path = target / "digits" / "1.0.0" / file
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return target


def test_wrong_format(data_dir, tmp_path):
    """tfrecord would need TensorFlow: the command writes array_record into another folder."""
    folder = _copy_digits(
        data_dir,
        tmp_path / "data",
        "dataset_info.json",
        lambda info: info.update(fileFormat="tfrecord"),
    )
    with pytest.raises(DatasetError) as error:
        open_split("digits", "train", folder)
    text = str(error.value)
    assert "is stored as tfrecord" in text and str(folder / "digits" / "1.0.0") in text
    assert f"python -m sasa_jax.data.prepare digits --data_dir {folder}_array_record" in text

    # Our command cannot prepare what TFDS does not know.
    (folder / "digits").rename(folder / "mine")
    with pytest.raises(DatasetError, match="let its builder write it"):
        open_split("mine", "train", folder)


def test_data_set_unknown_to_tfds(data_dir, tmp_path):
    """A folder in TFDS's layout is enough, whoever wrote it."""
    shutil.copytree(data_dir / "digits", tmp_path / "mine")
    assert len(open_split("mine", "test", tmp_path)) == 360


def test_features_other_than_image_and_label(tmp_path):
    class Words(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)}
                ),
            )

        def _split_generators(self, dl_manager):
            return {"train": iter([(0, {"text": "a", "label": 0})])}

        def _generate_examples(self):
            raise AssertionError

    Words(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    with pytest.raises(DatasetError, match=r"label: ClassLabel, text: Text; needed are image"):
        open_split("words", "train", tmp_path)
