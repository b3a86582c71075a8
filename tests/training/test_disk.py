"""A disk that is really full: a small file system in memory, where one can be mounted."""

import errno
import shutil
import subprocess
import time
from pathlib import Path

import pytest

import main
from sasa_jax.data import open_split
from sasa_jax.training import SaveError, WorkdirError, Writers, digest, saved_step
from tests.training.small_digits import small_digits
from tests.training.toy import ToyTask, run


@pytest.fixture
def small_disk(tmp_path):
    """An empty disk of 4 MB."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs more rights: " + mounted.stderr.decode())
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def fill(folder: Path, *, free: int = 0) -> None:
    """Leaves so many bytes."""
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC
        file.truncate(file.tell() - free)


def fills_at_step_8(folder: Path) -> ToyTask:
    """In the first evaluation, once the checkpoint of that step is whole; logs still fit."""

    def on_evaluate(count: int) -> None:
        if count == 1:
            while saved_step(folder) < 8:
                time.sleep(0.01)
            fill(folder, free=24 * 1024)

    return ToyTask(on_evaluate=on_evaluate)


# Orbax' threads end in errors of their own.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_last_checkpoint_survives_a_full_disk(small_disk, tmp_path_factory):
    options = {"log_every": 100, "eval_every": 8, "checkpoint_every": 4}
    with pytest.raises(SaveError, match=r"where 0 MiB are free.* before it step 8 stands"):
        run(small_disk, fills_at_step_8(small_disk), **options)
    assert saved_step(small_disk) == 8
    (small_disk / "filler").unlink()
    whole = run(tmp_path_factory.mktemp("whole"), **options)
    assert digest(run(small_disk, **options)) == digest(whole)


def test_too_little_disk_is_refused_before_anything_is_compiled(
    small_disk, tmp_path_factory, capsys
):
    """The toy's state takes a kilobyte."""
    fill(small_disk)
    with pytest.raises(WorkdirError, match=r"has 0 MiB free, and 3 checkpoints of"):
        run(small_disk)
    data_dir = tmp_path_factory.mktemp("data")
    open_split("digits", "train", data_dir)
    with pytest.raises(SystemExit) as leave:
        main.run(small_digits(data_dir), small_disk, "train")
    assert leave.value.code == 2
    assert "lower keep_checkpoints, 2" in capsys.readouterr().err


def test_what_is_saved_already_counts(small_disk, tmp_path_factory):
    """A finished run can be looked at on a disk that has become full."""
    whole = tmp_path_factory.mktemp("whole")
    run(whole)
    shutil.copytree(whole, small_disk / "run")
    fill(small_disk, free=64 * 1024)
    run(small_disk / "run")


def test_a_log_that_does_not_fit_ends_the_run_in_one_line(
    small_disk, tmp_path_factory, capsys, monkeypatch
):
    data_dir = tmp_path_factory.mktemp("data")
    open_split("digits", "train", data_dir)
    (small_disk / "metrics.jsonl").write_text("")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Writers, "image", full)
    with pytest.raises(SystemExit) as leave:
        main.run(small_digits(data_dir), small_disk, "train")
    assert leave.value.code == 4
    assert "the disk of" in (said := capsys.readouterr().err) and "step 12" in said
