"""Weights & Biases offline: the real package where it is installed, and one error where not."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import main
from sasa_jax.training import WandbError, Writers, check_wandb
from tests.training import toy
from tests.training.small_digits import small_digits

ROOT = Path(__file__).resolve().parents[2]


def refusal(project):
    with pytest.raises(WandbError) as refused:
        check_wandb(project)
    return str(refused.value)


def test_without_the_package_training_is_refused_with_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    assert "pip install 'sasa_jax[wandb]'" in refusal("digits")
    with pytest.raises(SystemExit) as leave:
        main.run(small_digits(tmp_path, wandb="digits"), tmp_path / "run", "train")
    assert leave.value.code == 2
    error = capsys.readouterr().err
    assert "wandb=digits needs the package wandb" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_a_project_the_package_is_not_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    check_wandb(None)


@pytest.fixture
def wandb(monkeypatch):
    package = pytest.importorskip("wandb", reason="the extra wandb, 70 MB, is not in `test`")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    return package


def records(workdir):
    """What the offline runs hold, as bytes, by the folder's name."""
    folders = sorted((workdir / "wandb").glob("offline-run-*"))
    return {folder.name: next(folder.glob("*.wandb")).read_bytes() for folder in folders}


def test_numbers_pictures_and_config_arrive(wandb, tmp_path):
    with Writers(tmp_path, wandb="team/digits", config={"seed": 3}) as writers:
        writers.write({"kind": "eval", "step": 7, "average/accuracy": 0.53125})
        writers.image(7, "attention", np.full((4, 6, 3), 9, np.uint8))
        run = wandb.run
        assert (run.entity, run.project, run.name) == ("team", "digits", tmp_path.name)
        assert dict(run.config) == {"seed": 3}
        assert run.summary["eval/average/accuracy"] == 0.53125 and run.summary["step"] == 7
    assert wandb.run is None
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/images/attention_*.png"))) == 1


def test_a_resumed_run_is_the_same_run(wandb, tmp_path):
    toy.run(tmp_path, total_steps=8, wandb="digits")
    time.sleep(1.1)  # wandb names its folders by the second
    toy.run(tmp_path, total_steps=8, wandb="digits")  # finished: scored again
    assert len(records(tmp_path)) == 2
    (number,) = {name.rpartition("-")[2] for name in records(tmp_path)}
    assert number == (tmp_path / "wandb_id.txt").read_text()
    logged = b"".join(records(tmp_path).values())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} == {"train", "eval"}
    for line in lines:
        for name in line.keys() - {"kind", "step", "total_steps"}:
            assert f"{line['kind']}/{name}".encode() in logged


def test_a_project_that_is_no_name_is_refused_before_anything_is_written(wandb, tmp_path):
    for project in ("a/b/c", "/digits"):
        assert f"PROJECT or ENTITY/PROJECT, got '{project}'" in refusal(project)
        with pytest.raises(WandbError):
            toy.run(tmp_path, wandb=project)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_whoever_is_not_logged_in_is_told_what_to_do(wandb, tmp_path):
    """In a process of its own, as wandb reads the environment once."""
    script = "import pathlib; from sasa_jax.training import Writers; Writers(pathlib.Path()"
    done = subprocess.run(
        [sys.executable, "-c", f"{script}, wandb='digits')"],
        env={**os.environ, "WANDB_MODE": "online", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert re.search(r"WandbError: wandb=digits: .*wandb login.* WANDB_MODE=offline", done.stderr)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_other_processes_write_nothing(wandb, tmp_path):
    with Writers(tmp_path, wandb="digits", active=False) as writers:
        writers.write({"kind": "eval", "step": 7, "average/accuracy": 0.5})
    assert not list(tmp_path.iterdir())
