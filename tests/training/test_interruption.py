"""Real processes, really killed. In a file of its own because each test starts several.

Every run but the last of a test is broken off; what the last one ends in must be the bits of a run
that nothing disturbed.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from sasa_jax.training import Checkpoints, Interrupted, digest, saved_digest, saved_step
from tests.training.soak import Soak
from tests.training.test_loop import stop_at_evaluation
from tests.training.toy import run

ROOT = Path(__file__).resolve().parents[2]
STEPS = 60


def start(
    workdir: Path, *, pause: float, steps: int = STEPS, devices: int = 4, patience: float = 0.0
):
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
    numbers = [str(number) for number in (steps, pause, patience)]
    command = [sys.executable, "-m", "tests.training.toy", str(workdir), *numbers]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_lines(process: subprocess.Popen, workdir: Path, lines: int) -> None:
    deadline = time.monotonic() + 120
    metrics = workdir / "metrics.jsonl"
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < lines:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)


def test_killed_or_stopped_it_ends_in_the_same_bits(tmp_path):
    """kill -9 twice, Ctrl-C and SIGTERM, one after the other, on one run."""
    for signum, code, lines in (
        (signal.SIGKILL, -signal.SIGKILL, 10),
        (signal.SIGINT, 130, 22),
        (signal.SIGKILL, -signal.SIGKILL, 35),
        (signal.SIGTERM, 143, 44),
    ):
        process = start(tmp_path, pause=0.05)
        wait_for_lines(process, tmp_path, lines)
        process.send_signal(signum)
        out, errors = process.communicate(timeout=30)  # so much a preemption may leave
        assert process.returncode == code, errors
        assert 0 < saved_step(tmp_path) < STEPS
        if signum != signal.SIGKILL:
            assert f"after step {saved_step(tmp_path)}, which is saved" in out.splitlines()[-1]
            assert "finishing the step and saving" in errors
    last = start(tmp_path, pause=0.0)
    out, errors = last.communicate(timeout=120)
    assert last.returncode == 0, errors
    undisturbed = run(tmp_path / "undisturbed", total_steps=STEPS)
    assert out.splitlines()[-1] == digest(undisturbed) == saved_digest(tmp_path)


def test_five_kills_at_random_moments(tmp_path):
    """`make soak` does a hundred, of detection too."""
    soak = Soak(tmp_path)
    soak.undisturbed("digits")
    results = list(soak.rounds(kills=5, workers=2))
    assert sum(result["killed"] for result in results) >= 5
    assert all(result["same"] for result in results), results


def test_a_run_that_hangs_says_where_and_ends(tmp_path):
    process = start(tmp_path, pause=600.0, patience=2.0)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Timeout" in errors
    assert "in __next__" in errors and "in train" in errors, "the stack of the main thread"


def test_four_devices_hand_over_to_one(tmp_path):
    """The same result up to rounding on another number of devices, taken over half-way."""
    whole = run(tmp_path / "whole", total_steps=20)
    with pytest.raises(Interrupted):
        run(tmp_path / "moved", stop_at_evaluation(1), total_steps=20)
    process = start(tmp_path / "moved", pause=0.0, steps=20, devices=1)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    with Checkpoints(tmp_path / "moved", read_only=True) as checkpoints:
        moved = checkpoints.arrays(20)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        whole.averages,
        moved["averages"],
    )
