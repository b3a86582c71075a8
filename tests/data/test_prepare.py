"""The checks before hours of preparing, each with a way out; no network and no TensorFlow."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sasa_jax.data import open_split, prepare

TRAIN, VALIDATION = prepare.MANUAL_FILES["imagenet2012"]


@pytest.fixture
def tensorflow_found(monkeypatch):
    """Let the check for TensorFlow pass, and stop before TFDS would run."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    runs = []
    monkeypatch.setattr(prepare, "_run", lambda builder, name, manual_dir: runs.append(str(name)))
    return runs


def set_free_space(monkeypatch, gibibytes: float) -> None:
    usage = SimpleNamespace(free=int(gibibytes * prepare.GIB))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def make_tars(folder: Path, size: int) -> None:
    folder.mkdir()
    for name in (TRAIN, VALIDATION):
        with (folder / name).open("wb") as file:
            file.truncate(size)  # sparse: takes no space


def fails(capsys, *arguments: str) -> str:
    assert prepare.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error
    return error


def test_digits_twice(capsys, tmp_path):
    """As a user would: the command writes, a second time it says so, and both exit 0."""
    arguments = ["digits", "--data_dir", str(tmp_path)]
    command = [sys.executable, "-m", "sasa_jax.data.prepare", *arguments]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "Prepared digits in" in run.stdout and "train: 1,437 examples" in run.stdout
    assert prepare.main(arguments) == 0
    assert "already prepared" in capsys.readouterr().out
    assert len(open_split("digits", "train", tmp_path)) == 1437


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        prepare.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert TRAIN in text and "--manual_dir" in text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("imagnet2012", "did you mean 'imagenet2012'"),
        ("digit", "did you mean 'digits'"),
        ("not a name", "expected TFDS's form"),
        ("coco_folder", "needs no preparing"),
    ],
)
def test_unknown_name(capsys, tmp_path, name, words):
    assert words in fails(capsys, name, "--data_dir", str(tmp_path))


def test_unknown_config(capsys, tmp_path, tensorflow_found):
    error = fails(capsys, "imagenet_resized/9x9", "--data_dir", str(tmp_path))
    assert "TFDS has no imagenet_resized/9x9" in error
    assert not tensorflow_found


def test_tensorflow_missing(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    error = fails(capsys, "cifar10", "--data_dir", str(tmp_path))
    assert "pip install 'sasa_jax[data]'" in error


def test_manual_files_missing(capsys, tmp_path, tensorflow_found):
    arguments = ["imagenet2012", "--data_dir", str(tmp_path / "data")]
    error = fails(capsys, *arguments)
    assert f"{tmp_path}/data/downloads/manual lacks {TRAIN} and {VALIDATION}" in error
    assert "https://image-net.org" in error
    assert f"prepare imagenet2012 --data_dir {tmp_path}/data --manual_dir M" in error

    make_tars(tmp_path / "tars", 10)
    (tmp_path / "tars" / TRAIN).unlink()
    error = fails(capsys, *arguments, "--manual_dir", str(tmp_path / "tars"))
    assert f"{tmp_path}/tars lacks {TRAIN}. " in error
    error = fails(capsys, "resisc45", "--data_dir", str(tmp_path / "data"))
    assert "is absent or empty" in error and "OneDrive" in error
    assert not tensorflow_found


def test_space(capsys, tmp_path, tensorflow_found, monkeypatch):
    """Judged by the tars that are there, so a subset is not refused for want of 144 GiB."""
    make_tars(tmp_path / "tars", 50 * prepare.GIB)
    arguments = ["imagenet2012", "--data_dir", str(tmp_path / "a" / "b")]
    arguments += ["--manual_dir", str(tmp_path / "tars")]
    set_free_space(monkeypatch, 90)
    error = fails(capsys, *arguments)
    assert "needs about 105.00 GiB" in error and "90.00 GiB are free" in error
    assert not tensorflow_found

    set_free_space(monkeypatch, 110)
    assert prepare.main(arguments) == 1  # only because the run is a fake one
    captured = capsys.readouterr()
    assert tensorflow_found == ["imagenet2012"]
    assert "needs about 105.00 GiB" in captured.out and "Expected time: 72 minutes." in captured.out
    assert "the original 147,897,477,120: a subset or an incomplete download" in captured.out
    assert "still missing" in captured.err


def test_space_for_downloads(capsys, tmp_path, tensorflow_found, monkeypatch):
    set_free_space(monkeypatch, 0.1)
    error = fails(capsys, "cifar10", "--data_dir", str(tmp_path))
    assert "0.16 GiB of downloads" in error and "0.10 GiB are free" in error
    set_free_space(monkeypatch, 1)
    prepare.main(["cifar10", "--data_dir", str(tmp_path)])
    assert "and the download." in capsys.readouterr().out
    assert tensorflow_found == ["cifar10"]


def test_failure_inside_tfds(capsys, tmp_path, monkeypatch):
    """A broken tar after all checks: one paragraph, and nothing half-written."""

    class Builder:
        def download_and_prepare(self, **kwargs):
            raise OSError("unexpected end\nof data")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(prepare, "_builder", lambda name, data_dir: Builder())
    monkeypatch.setattr(prepare, "_check_space", lambda *arguments: None)
    error = fails(capsys, "cifar10", "--data_dir", str(tmp_path))
    assert "TFDS failed to prepare cifar10: OSError: unexpected end of data" in error
