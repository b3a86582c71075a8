"""The embedded data set holds scikit-learn's arrays, in their order, made without TensorFlow."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from sasa_jax.data import DatasetError, open_split
from sasa_jax.data.image_transforms import decode


@pytest.mark.parametrize(
    ("split", "rows"),
    [
        ("train", slice(0, 1437)),
        ("test", slice(1437, 1797)),
        ("train[:1200]", slice(0, 1200)),
        ("train[1200:]", slice(1200, 1437)),
    ],
)
def test_same_as_scikit_learn(data_dir, split, rows):
    opened = open_split("digits", split, data_dir)
    digits = load_digits()
    assert len(opened) == rows.stop - rows.start
    examples = [opened[i] for i in range(len(opened))]
    assert [e["label"] for e in examples] == digits.target[rows].tolist()
    assert [e["index"] for e in examples] == list(range(len(opened)))
    pixels = np.stack([decode(e["image"]) for e in examples])
    assert pixels.dtype == np.uint8 and pixels.shape[1:] == (8, 8, 3)
    # 16 grey levels become 255 and back without loss; the three channels are equal.
    np.testing.assert_array_equal(
        np.rint(pixels * (16 / 255)), np.repeat(digits.images[rows][..., None], 3, axis=-1)
    )
    assert pixels.max() == 255


def test_decoding_agrees_with_tfds(data_dir):
    """Our reading of the stored bytes is the one that TFDS's own decoding gives."""
    builder = tfds.builder_from_directory(data_dir / "digits" / "1.0.0")
    theirs = builder.as_data_source("test")
    ours = open_split("digits", "test", data_dir)
    for i in (0, 123, 359):
        np.testing.assert_array_equal(decode(ours[i]["image"])[..., :1], theirs[i]["image"])
        assert ours[i]["label"] == theirs[i]["label"]


def test_metadata(data_dir):
    test = open_split("digits", "test", data_dir)
    assert test.num_classes == 10
    assert test.class_names == tuple("0123456789")
    assert test.name == "digits:1.0.0"
    assert "360 images" in test.description
    for index in (-1, 360):
        with pytest.raises(IndexError, match="0 to 359"):
            test[index]


def test_prepared_by_many_at_once(tmp_path):
    """Two processes on a fresh machine both come through, and leave one complete copy."""
    script = (
        "import sys; from sasa_jax.data import DatasetError, open_split;"
        "assert len(open_split('digits', 'test', sys.argv[1])) == 360;"
        "assert 'tensorflow' not in sys.modules"
    )

    def run(_: int) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True
        )

    with ThreadPoolExecutor(2) as pool:
        for result in pool.map(run, range(2)):
            assert result.returncode == 0, result.stderr
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="Name a data_dir that can be written"):
        open_split("digits", "train", tmp_path / "file")
