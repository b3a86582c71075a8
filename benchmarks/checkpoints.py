"""What checkpoints cost: the demo's training with one every 100 steps, and without.

    python benchmarks/checkpoints.py [--pairs=5]

Trains configs/digits.py for 360 steps at a time, in turns with and without, and times the 300 steps
from 50 to 350 of each, three checkpoints among them. A checkpoint is copied off the devices while
the loop waits and written beside the training.

Then saves the states of configs/digits.py and configs/sa_resnet50.py some times, with nothing
beside it.

Prints the seconds of each pair, by the clock and of the processors (which other programs on the
machine disturb less), the medians of their ratios, and the median seconds of one checkpoint, and
writes benchmarks/results/checkpoints_<device>.json.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common
from configs import digits, sa_resnet50
from sasa_jax import training
from sasa_jax.data import TrainLoader
from sasa_jax.tasks import Classification, open_task

STEPS, BEGIN, END, EVERY = 360, 50, 350, 100
ALONE = 9  # checkpoints with nothing beside them


class Stopwatch:
    """Training batches that note when the steps BEGIN and END are fetched."""

    def __init__(self, batches: TrainLoader):
        self._batches = batches
        self._fetched = 0
        self.times: dict[int, tuple[float, float]] = {}

    def __next__(self):
        self.times[self._fetched] = (time.perf_counter(), time.process_time())
        self._fetched += 1
        return next(self._batches)

    def __getattr__(self, name: str):
        return getattr(self._batches, name)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args(argv)
    common.keep_memory()
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", f"{folder}/cache")  # every run compiles it
        task = open_task(config(folder, 0))
        train(task, config(folder, 0), Path(folder) / "warm")
        pairs = []
        for number in range(arguments.pairs):
            pair = {
                name: train(task, config(folder, every), Path(folder) / f"{name}{number}")
                for name, every in (("without", 0), ("with", EVERY))
            }
            pairs.append(pair)
            print(
                ", ".join(
                    f"{name} {seconds:.2f} s (processor time {processor:.2f})"
                    for name, (seconds, processor) in pair.items()
                ),
                flush=True,
            )
        size = sum(f.stat().st_size for f in (Path(folder) / "with0").rglob("*") if f.is_file())
        alone = {
            name: checkpoint(configs.get_config(), Path(folder) / name)
            for name, configs in (("digits", digits), ("sa_resnet50", sa_resnet50))
        }
    ratio, processor_ratio = (
        statistics.median(pair["with"][i] / pair["without"][i] for pair in pairs) for i in range(2)
    )
    print(
        f"a checkpoint every {EVERY} steps: {ratio:.3f} times the time without, "
        f"{processor_ratio:.3f} times the processor time, medians of {len(pairs)} pairs; the run's "
        f"folder {size / 2**20:.1f} MiB"
    )
    for name, one in alone.items():
        print(
            f"{name}, a state of {one['bytes'] / 1e6:.1f} MB in {one['arrays']} arrays: the loop "
            f"waits {one['waited']:.3f} s, it is written after {one['written']:.3f} s, of the "
            f"processors {one['processor']:.3f} s"
        )
    record = {
        "pairs": pairs,
        "median_ratio": ratio,
        "median_processor_ratio": processor_ratio,
        "every": EVERY,
        "steps": END - BEGIN,
        "alone": alone,
    }
    path = common.write(f"checkpoints_{jax.devices()[0].device_kind}", common.setting() | record)
    common.note(f"written to {path}")


def config(folder: str, checkpoint_every: int) -> dict:
    made = digits.get_config()
    made.data.dir = f"{folder}/data"
    made.total_steps = STEPS
    made.eval_every = 0
    made.log_every = STEPS
    made.checkpoint_every = checkpoint_every
    return made.to_dict()


def train(task: Classification, config: dict, workdir: Path) -> tuple[float, float]:
    """Seconds from step BEGIN to step END of a whole run, by the clock and of the processors."""
    watch = None
    open_batches = task.train_batches

    def watched() -> Stopwatch:
        nonlocal watch
        watch = Stopwatch(open_batches())
        return watch

    task.train_batches = watched
    try:
        training.train(task, config, training.make_plan(config, task.train_size), workdir)
    finally:
        task.train_batches = open_batches
    return tuple(
        end - begin for begin, end in zip(watch.times[BEGIN], watch.times[END], strict=True)
    )


def checkpoint(made: ConfigDict, workdir: Path) -> dict[str, float]:
    """Median seconds of a checkpoint: that the loop waits, until it is written, processors'."""
    made.data.dir = f"{workdir.parent}/data"
    made.batch_size = len(jax.devices())
    config = made.to_dict()
    task = open_task(config, allow_absent=True)
    plan = training.make_plan(config, task.train_size)
    abstract = training.make_program(task, config, plan, training.data_mesh()).state
    state = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype, device=x.sharding), abstract)
    times = []
    with training.Checkpoints(workdir, keep=1) as checkpoints:
        for step in range(1, ALONE + 1):
            begin, processor = time.perf_counter(), time.process_time()
            checkpoints.save(step, state, {"position": step}, config)
            waited = time.perf_counter() - begin
            checkpoints.wait()
            times.append((waited, time.perf_counter() - begin, time.process_time() - processor))
    medians = map(statistics.median, zip(*times, strict=True))
    arrays = jax.tree.leaves(state)
    return dict(zip(("waited", "written", "processor"), medians, strict=True)) | {
        "bytes": sum(x.nbytes for x in arrays),
        "arrays": len(arrays),
    }


if __name__ == "__main__":
    main()
