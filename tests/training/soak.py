"""Kills training runs at random moments and compares the ends they come to.

    python -m tests.training.soak [--kills=100] [--minutes=20] [--seed=0] [--workers=CORES]

Every round starts a shrunk run of configs/digits.py or configs/digit_scenes.py, kills it -9 at a
random moment of its life (while it starts, compiles, trains, writes a checkpoint, evaluates, ends;
four of five after a random step was begun), and runs the same command to its end. The end must be
the bits of a run that nobody disturbed: state, and the ids of the examples of every step. The last
line says how many did; 1 is returned unless all did.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

# Its children begin with these imported: most of a short run's life would be that otherwise.
PRELOADED = ["main", "tests.training.small_digits", "tests.training.small_scenes"]
TASKS = ("digits", "digit_scenes")


def child(task: str, workdir: Path, data_dir: Path) -> None:
    """Trains in this process; appends "position ids" for every batch to workdir/ids.jsonl."""
    sys.stdout = sys.stderr = (workdir / "log.txt").open("a")
    os.dup2(sys.stderr.fileno(), 2)
    import main
    from sasa_jax.data import TrainLoader
    from tests.training.small_digits import small_digits
    from tests.training.small_scenes import small_scenes

    fetch = TrainLoader.__next__
    ids = (workdir / "ids.jsonl").open("ab", buffering=0)

    def fetch_and_record(loader: Any) -> Any:
        position = loader.get_state()["position"]
        batch = fetch(loader)
        # The line's end comes first: a torn line takes no other with it.
        ids.write(f"\n{json.dumps([position, batch['index'].tolist()])}".encode())
        return batch

    TrainLoader.__next__ = fetch_and_record
    # Epochs end after ten and five steps.
    if task == "digits":
        length = dict(total_steps=30, eval_every=15, data__train_split="train[:160]")
        config = small_digits(data_dir, log_every=1, checkpoint_every=3, **length)
    else:
        length = dict(total_steps=12, eval_every=6, data__train_split="train[:40]")
        config = small_scenes(data_dir, log_every=1, checkpoint_every=3, **length)
    main.run(config, workdir, "train")


class Moment(NamedTuple):
    """So many seconds after so many batches were fetched."""

    batches: int
    seconds: float


class Soak:
    """Runs and their ends.

    Args:
        folder: for everything; the data are prepared there.
        seed: of the moments.
    """

    def __init__(self, folder: Path, seed: int = 0):
        self._folder = folder
        self._seed = seed
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)
        self._ends: dict[str, tuple[str, dict[int, list[int]]]] = {}
        self._seconds: dict[str, float] = {}

    def undisturbed(self, task: str) -> float:
        """The run that the others are compared with, and its seconds when it is compiled."""
        for name in ("first", "timed"):
            workdir = self._folder / f"{task}_{name}"
            begin = time.monotonic()
            assert self._run(task, workdir) == 0, (workdir / "log.txt").read_text()
            self._seconds[task] = time.monotonic() - begin
            end = self._end(workdir)
            assert self._ends.setdefault(task, end) == end, "two runs differ without any kill"
        return self._seconds[task]

    def round(self, number: int) -> dict[str, Any]:
        """One kill and one rerun: what was done, and whether the end is the same."""
        task = list(self._ends)[number % len(self._ends)]
        workdir = self._folder / f"round{number}"
        moment = self._moment(task, random.Random(f"{self._seed} {number}"))
        killed = self._run(task, workdir, moment) == -signal.SIGKILL
        saved = sorted(int(p.name) for p in workdir.glob("checkpoints/*") if p.name.isdecimal())
        writing = any(workdir.glob("checkpoints/*tmp*"))
        code = self._run(task, workdir)
        same = code == 0 and self._end(workdir) == self._ends[task]
        if same:
            shutil.rmtree(workdir)
        return {
            "task": task,
            "killed": killed,
            **moment._asdict(),
            "saved": saved[-1] if saved else 0,
            "in_a_write": writing,
            "same": same,
        }

    def _moment(self, task: str, choose: random.Random) -> Moment:
        """By steps, as the time that they take hangs on what else the machine does."""
        if choose.random() < 0.2:
            return Moment(0, round(choose.uniform(0, self._seconds[task]), 2))
        return Moment(choose.randint(1, len(self._ends[task][1])), round(choose.uniform(0, 1), 2))

    def _run(self, task: str, workdir: Path, kill: Moment | None = None) -> int | None:
        workdir.mkdir(exist_ok=True)
        process = self._context.Process(target=child, args=(task, workdir, self._folder / "data"))
        process.start()
        if kill:
            while process.is_alive() and _fetched(workdir) < kill.batches:
                process.join(0.01)
            process.join(kill.seconds)
            process.kill()
        process.join()
        return process.exitcode

    def _end(self, workdir: Path) -> tuple[str, dict[int, list[int]]]:
        """The state's digest, and the ids of the examples by position in the stream."""
        from sasa_jax.training import saved_digest

        ids: dict[int, list[int]] = {}
        for line in (workdir / "ids.jsonl").read_text().split("\n")[1:]:
            try:
                position, batch = json.loads(line)
            except json.JSONDecodeError:  # torn by the kill
                continue
            assert ids.setdefault(position, batch) == batch, "a position held other examples"
        return saved_digest(workdir), ids

    def rounds(self, kills: int, workers: int = 1, minutes: float = 20) -> Iterator[dict[str, Any]]:
        """Results, until so many runs were killed (some end before) or the time is over."""
        deadline = time.monotonic() + 60 * minutes
        killed = 0

        def one(number: int) -> dict[str, Any] | None:
            nonlocal killed
            if killed >= kills or time.monotonic() > deadline:
                return None
            result = self.round(number)
            killed += result["killed"]
            return result

        with ThreadPoolExecutor(workers) as pool:
            yield from filter(None, pool.map(one, range(2 * kills)))


def _fetched(workdir: Path) -> int:
    file = workdir / "ids.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def main(kills: int, minutes: float, seed: int, workers: int) -> int:
    """Prints a line a round and a summary."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("MPLBACKEND", "agg")
    with tempfile.TemporaryDirectory(prefix="soak_", ignore_cleanup_errors=True) as folder:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/cache"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
        begin, soak = time.monotonic(), Soak(Path(folder), seed)
        for task in TASKS:
            seconds = soak.undisturbed(task)
            print(f"{task}: an undisturbed run takes {seconds:.1f} s", flush=True)
        results = []
        for result in soak.rounds(kills, workers, minutes - (time.monotonic() - begin) / 60):
            results.append(result)
            print(f"{len(results):4} {json.dumps(result)}", flush=True)
        done = [result for result in results if result["killed"]]
        same = sum(result["same"] for result in done)
        print(
            f"{len(done)} kills, {sum(r['in_a_write'] for r in done)} of them in a checkpoint's "
            f"write, {sum(r['saved'] == 0 for r in done)} before the first one was whole; "
            f"{same} identical ends; {(time.monotonic() - begin) / 60:.1f} minutes"
        )
    return 0 if len(done) >= kills and all(result["same"] for result in results) else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=20.0, help="at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at a time")
    sys.exit(main(**vars(parser.parse_args())))
