"""Several processes on one machine, over gloo, training together, one of them killed.

In a file of its own because each test starts several: `make test-multiprocess` runs all of them,
`make test` those that are not slow.
"""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from sasa_jax.data import open_detection_split, open_split
from sasa_jax.training import Checkpoints, connect, saved_digest, saved_step
from sasa_jax.training.distributed import check_connected

ROOT = Path(__file__).resolve().parents[2]
DEAD_AFTER = 10  # seconds, as tests/training/process.py has it
STEPS = 12
# Short: after some twenty steps a pixel wins another max pool, and rounding is no longer all.
OPTIONS = {"total_steps": STEPS, "eval_every": 6, "checkpoint_every": 4, "log_every": 1}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    open_split("digits", "train", folder)  # prepared once, not by all processes at a time
    return folder


def start(
    workdir: Path,
    data_dir: Path,
    count: int,
    config: str = "digits",
    of_last: dict[str, Any] | None = None,
    **overrides: Any,
) -> list[subprocess.Popen]:
    """`count` processes that share four devices, the last with overrides of its own."""
    port, (devices, left) = free_port(), divmod(4, count)
    assert not left
    processes = []
    for index in range(count):
        own = OPTIONS | overrides | ((of_last or {}) if index == count - 1 else {})
        command = [sys.executable, "-m", "tests.training.process", config, workdir, data_dir]
        command += [f"{index}/{count}", port, devices]
        command += [f"{key}={json.dumps(value)}" for key, value in own.items()]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(subprocess.Popen([str(word) for word in command], cwd=ROOT, **pipes))
    return processes


def free_port() -> int:
    with socket.socket() as unbound:
        unbound.bind(("localhost", 0))
        return unbound.getsockname()[1]


def finish(processes: list[subprocess.Popen], timeout: float = 600) -> list[tuple[int, str, str]]:
    """(exit code, standard output, errors) of each; none is left behind."""
    try:
        texts = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *text) for p, text in zip(processes, texts, strict=True)]


def succeed(workdir: Path, data_dir: Path, count: int, **overrides: Any) -> list[str]:
    """Their standard output, but for gloo's."""
    done = finish(start(workdir, data_dir, count, **overrides))
    assert [code for code, *_ in done] == [0] * count, done
    return [re.sub(r".*\[Gloo\].*\n", "", out) for _, out, _ in done]


def wait_for_step(workdir: Path, step: int, processes: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + 300
    while not any(record["step"] >= step for record in records(workdir)):
        assert time.monotonic() < deadline, finish(processes)
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.02)


def records(workdir: Path) -> list[dict]:
    file = workdir / "metrics.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


def ids(workdir: Path, index: int) -> np.ndarray:
    """Of the examples of one process, [steps, examples]."""
    return np.array(json.loads((workdir / f"ids.{index}.json").read_text()))


def arrays(workdir: Path) -> dict:
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.arrays(checkpoints.latest_step())


@pytest.fixture(scope="module")
def alone(data_dir, tmp_path_factory):
    """The run of one process with four devices."""
    workdir = tmp_path_factory.mktemp("alone")
    succeed(workdir, data_dir, 1)
    return workdir


@pytest.fixture(scope="module")
def pair(data_dir, tmp_path_factory):
    """The run of two processes with two devices each, and what they printed."""
    workdir = tmp_path_factory.mktemp("pair")
    return workdir, succeed(workdir, data_dir, 2)


def assert_same_run(workdir: Path, wanted: Path) -> None:
    """Up to the order in which the devices' gradients are added."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        arrays(workdir)["params"],
        arrays(wanted)["params"],
    )
    last, wanted_last = records(workdir)[-1], records(wanted)[-1]
    assert last["average/images"] == wanted_last["average/images"] == 150
    assert last["average/loss"] == pytest.approx(wanted_last["average/loss"], rel=1e-5)


def assert_shared(
    workdir: Path, count: int, wanted: np.ndarray, *, steps: int = STEPS, batch: int = 16
) -> None:
    """Laid end to end, the processes' shards are the batches of one process."""
    shards = [ids(workdir, index) for index in range(count)]
    assert {shard.shape for shard in shards} == {(steps, batch // count)}
    np.testing.assert_array_equal(np.concatenate(shards, axis=1), wanted)


def test_two_processes_train_as_one(alone, pair):
    workdir, (first, second) = pair
    assert_shared(workdir, 2, ids(alone, 0))
    assert_same_run(workdir, alone)
    assert "2 process" in first and "test accuracy" in first
    assert second == "", "only the first one speaks"


def test_one_is_killed_and_the_rerun_ends_in_the_same_bits(data_dir, pair, tmp_path):
    processes = start(tmp_path, data_dir, 2)
    wait_for_step(tmp_path, 6, processes)
    processes[1].kill()
    begin = time.monotonic()
    (survivor, *_), _ = finish(processes)
    # JAX aborts it when the signs of life are missed, unless gloo sees the connection break before.
    assert survivor in (-signal.SIGABRT, 1)
    assert time.monotonic() - begin < DEAD_AFTER + 20
    assert saved_step(tmp_path) < STEPS
    succeed(tmp_path, data_dir, 2)
    assert saved_digest(tmp_path) == saved_digest(pair[0])


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_stops_all_at_one_step(data_dir, pair, tmp_path, signum):
    processes = start(tmp_path, data_dir, 2)
    wait_for_step(tmp_path, 4, processes)
    processes[1].send_signal(signum)
    done = finish(processes)
    assert [code for code, *_ in done] == [128 + signum] * 2, done
    last_lines = {out.splitlines()[-1] for _, out, _ in done}
    assert len(last_lines) == 1
    assert f"after step {saved_step(tmp_path)}, which is saved" in last_lines.pop()
    assert saved_step(tmp_path) < STEPS
    succeed(tmp_path, data_dir, 2)
    assert saved_digest(tmp_path) == saved_digest(pair[0])


@pytest.mark.slow
def test_four_processes_train_as_one(alone, data_dir, tmp_path):
    succeed(tmp_path, data_dir, 4)
    assert_shared(tmp_path, 4, ids(alone, 0))
    assert_same_run(tmp_path, alone)


@pytest.mark.slow
def test_two_processes_detect_as_one(tmp_path_factory):
    """Also the evaluation, whose boxes are gathered from all devices."""
    folders = {count: tmp_path_factory.mktemp(f"detect{count}") for count in (1, 2)}
    data_dir = tmp_path_factory.mktemp("data")
    open_detection_split("digit_scenes", "train", data_dir)
    for count, folder in folders.items():
        succeed(folder, data_dir, count, config="digit_scenes", total_steps=4, eval_every=4)
    assert_shared(folders[2], 2, ids(folders[1], 0), steps=4, batch=8)
    last, wanted = (records(folders[count])[-1] for count in (2, 1))
    assert last["average/images"] == 30
    for name in ("average/AP", "average/AR100", "raw/AP50"):
        assert last[name] == pytest.approx(wanted[name], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(4, 1), (1, 2), (2, 4)])
def test_another_number_of_processes_goes_on(alone, data_dir, tmp_path, counts):
    before, after = counts
    processes = start(tmp_path, data_dir, before)
    wait_for_step(tmp_path, 4, processes)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    assert {code for code, *_ in finish(processes)} == {143}
    taken_up = saved_step(tmp_path)
    assert taken_up < STEPS
    succeed(tmp_path, data_dir, after)
    rest = np.concatenate([ids(tmp_path, index) for index in range(after)], axis=1)
    np.testing.assert_array_equal(rest, ids(alone, 0)[taken_up:])
    assert_same_run(tmp_path, alone)


@pytest.mark.slow
def test_one_that_fails_alone_ends_at_once_and_the_others_follow(data_dir, tmp_path):
    """Its data has another name: the other waits for it in the first step's collective."""
    processes = start(tmp_path, data_dir, 2, of_last={"data__name": "digit"})
    (survivor, *_), (failed, _, errors) = finish(processes)
    assert failed == 2 and "error: " in errors and "digits" in errors
    assert survivor in (-signal.SIGABRT, 1)


@pytest.mark.slow
def test_one_whose_compiler_takes_long_is_waited_for(data_dir, tmp_path):
    """For more than the 30 seconds after which the first collective on CPUs gives up."""
    options = dict(total_steps=2, eval_every=0, of_last={"late": 40})
    succeed(tmp_path, data_dir, 2, **options)
    assert saved_step(tmp_path) == 2


def connect_apart(*arguments: str) -> tuple[int, str]:
    """Exit code and errors of a process that does nothing else."""
    code = f"from sasa_jax import training; training.connect(*{arguments}, seconds=2)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


@pytest.mark.parametrize("index", [0, 1])
def test_a_start_without_the_others_ends_in_time_and_says_where_to_look(index):
    address = f"localhost:{free_port()}"
    code, errors = connect_apart(address, f"{index}/2")
    assert code == 1
    assert f"process {index} of 2 waited 2 s" in errors and address in errors
    assert "firewall" in errors
    assert ("refused" in errors) == (index == 1)


@pytest.mark.parametrize(
    ("coordinator", "process", "message"),
    [
        ("10.0.0.2", "0/4", "expected auto, or --coordinator=HOST:PORT"),
        ("10.0.0.2:8482", None, "--process=0/4"),
        ("10.0.0.2:8482", "4/4", "the last is 3/4"),
        ("auto", "0/4", "not with auto"),
    ],
)
def test_what_cannot_be_joined_is_refused(coordinator, process, message):
    with pytest.raises(ValueError, match=message):
        connect(coordinator, process)


def test_auto_needs_something_that_tells():
    code, errors = connect_apart("auto")
    assert code == 1
    assert "finds no Cloud TPU, SLURM, Open MPI or Kubernetes" in errors


@pytest.mark.parametrize("variable", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"])
def test_several_that_do_not_know_of_one_another_are_refused(variable):
    check_connected({})
    check_connected({variable: "1"})
    with pytest.raises(ValueError, match=r"started 4 processes.*--coordinator=auto"):
        check_connected({variable: "4"})
