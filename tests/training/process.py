"""One of several processes that train together: a script for test_processes.py.

    python -m tests.training.process CONFIG WORKDIR DATA_DIR INDEX/COUNT PORT DEVICES [KEY=JSON ...]

Trains configs/CONFIG.py, digits or digit_scenes, shrunk, as main.py does, with DEVICES CPU devices;
KEY=JSON overrides the config, and late=SECONDS makes its compiler slower. Writes the ids of the
examples that this process was given to WORKDIR/ids.INDEX.json, a list for each step, and takes a
tenth of a second for each, so that a test can step in.
"""

import json
import sys
import time
from pathlib import Path

import jax

import main
from sasa_jax import training
from sasa_jax.data import TrainLoader
from sasa_jax.training import loop
from tests.training.small_digits import small_digits
from tests.training.small_scenes import small_scenes

CONFIGS = {"digits": small_digits, "digit_scenes": small_scenes}


def record_ids(path: Path) -> None:
    """Makes the training loader write down what it hands out, slowly."""
    fetch, ids = TrainLoader.__next__, []

    def fetch_and_record(self):
        time.sleep(0.1)
        batch = fetch(self)
        ids.append(batch["index"].tolist())
        path.write_text(json.dumps(ids))
        return batch

    TrainLoader.__next__ = fetch_and_record


def compile_later(seconds: float) -> None:
    """Makes the loop come so much later to its first step."""
    make_program = loop.make_program

    def make_late(*arguments):
        time.sleep(seconds)
        return make_program(*arguments)

    loop.make_program = make_late


if __name__ == "__main__":
    name, workdir, data_dir, process, port, devices, *overrides = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", int(devices))
    index = int(process.split("/")[0])
    if process != "0/1":
        training.connect(f"localhost:{port}", process, seconds=60, dead_after=10)
    options = dict(override.split("=", 1) for override in overrides)
    options = {key: json.loads(value) for key, value in options.items()}
    compile_later(options.pop("late", 0))
    config = CONFIGS[name](Path(data_dir), **options)
    Path(workdir).mkdir(exist_ok=True)
    record_ids(Path(workdir) / f"ids.{index}.json")
    with training.failing_alone():
        main.run(config, Path(workdir), "train")
