"""A user's own folder of images: what is read, in which order, and what is refused, by name."""

import pickle
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from sasa_jax.data import DatasetError, EvalLoader, eval_loader, make_transform, open_split
from sasa_jax.tasks import open_task
from tests.training.small_digits import small_digits


def write(folder: Path, *files: str) -> Path:
    """Grey squares, each of its own shade; a file that is no image gets text."""
    for shade, name in enumerate(files):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("not an image")
        if path.suffix in (".png", ".JPG"):
            cv2.imwrite(str(path), np.full((12, 16, 3), 10 * shade, np.uint8))
    return folder


def opened(folder: Path, split: str = "train"):
    return open_split("image_folder", split, folder)


def test_good(tmp_path):
    """Classes by name, images by path and at any depth; hidden and other files are none."""
    files = ["nut/b.png", "bolt/deep/er.png", "nut/a.JPG", "bolt/notes.txt", "nut/.cache/c.png"]
    write(tmp_path / "train", *files, ".git/d.png")
    split = opened(tmp_path)
    assert split.class_names == ("bolt", "nut") and split.num_classes == 2 and len(split) == 3
    examples = [split[i] for i in range(3)]
    assert [e["file_name"] for e in examples] == ["bolt/deep/er.png", "nut/a.JPG", "nut/b.png"]
    assert [(e["label"], e["index"]) for e in examples] == [(0, 0), (1, 1), (1, 2)]
    assert examples[2]["image"] == (tmp_path / "train" / "nut" / "b.png").read_bytes()
    assert pickle.loads(pickle.dumps(split))[1] == examples[1]
    assert "image_folder train: 3 images, 2 classes" in repr(split)
    for outside in (-1, 3):
        with pytest.raises(IndexError, match="0 to 2"):
            split[outside]


@pytest.mark.parametrize(
    ("files", "split", "said"),
    [
        (["train/a/1.png"], "trian", "did you mean 'train'"),
        (["train/a/1.png"], "train[:1]", "a whole folder"),
        ([], "train", "has no split"),
        (["train/1.png"], "train", "has no subfolder"),
        (["train/a/1.png", "train/b/1.txt"], "train", "1 of 2 classes .* the first is 'b'"),
    ],
)
def test_refused(tmp_path, files, split, said):
    with pytest.raises(DatasetError, match=said):
        opened(write(tmp_path, *files), split)


def test_it_has_no_default_folder():
    with pytest.raises(DatasetError, match="needs data_dir"):
        open_split("image_folder", "train")


def test_a_file_that_is_no_image_is_told_and_left_out(tmp_path, capsys):
    write(tmp_path / "train", "a/1.png", "a/2.png", "b/1.png")
    (tmp_path / "train" / "a" / "2.png").write_bytes(b"no image")
    transform = make_transform("none", 8, train=False)
    loader: EvalLoader = eval_loader(opened(tmp_path), transform, batch_size=3)
    (batch,) = loader
    assert batch["mask"].tolist() == [True, False, True] and batch["label"].tolist()[2] == 1
    assert re.search("cannot decode", capsys.readouterr().err)


def test_splits_with_other_classes_are_refused(tmp_path):
    write(tmp_path, "train/a/1.png", "train/b/1.png", "validation/a/1.png")
    config = small_digits(tmp_path, data__name="image_folder", data__eval_split="validation")
    with pytest.raises(DatasetError, match="'validation' differ in b;"):
        open_task(config)


def test_the_task_takes_names_and_number_of_classes_from_it(tmp_path):
    write(tmp_path, "train/a/1.png", "train/b/1.png", "validation/a/1.png", "validation/b/1.png")
    config = small_digits(tmp_path, data__name="image_folder", data__eval_split="validation")
    task = open_task(config)
    assert task.class_names == ("a", "b") and task.train_size == 2
    assert task.shapes["params"]["classifier"]["bias"].shape == (2,)
