"""Checkpoints of a classifier and a detector, and what the evaluation says of them.

Their weights are random: nothing here depends on what a network has learned, and a training step
takes long to compile. That a run can be loaded is tested with the runs of tests/training.
"""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import sasa_jax
from sasa_jax import training
from sasa_jax.tasks import Classification, open_task
from tests.training.small_digits import small_digits
from tests.training.small_scenes import small_scenes


@dataclasses.dataclass(frozen=True)
class Run:
    """A folder with checkpoints of the steps 1 and 2.

    Attributes:
        workdir: the folder.
        config: of the run.
        split: the evaluation's examples.
        evaluation: of the variables.
    """

    workdir: Path
    config: dict[str, Any]
    split: Any
    evaluation: training.Evaluation


def make_run(config: dict[str, Any], workdir: Path, evaluated: tuple[str, ...]) -> Run:
    task = open_task(config)
    variables = {"average": random_variables(task, 0), "raw": random_variables(task, 1)}
    with training.Checkpoints(workdir, keep=2) as checkpoints:
        state = {"averages": variables["average"], **variables["raw"]}
        stored = config | {"class_names": list(task.class_names)}
        for step in (1, 2):
            checkpoints.save(step, state, {}, stored)
    mesh = training.data_mesh()
    with jax.set_mesh(mesh):
        put = functools.partial(training.put_batch, mesh=mesh)
        evaluation = task.evaluate({which: variables[which] for which in evaluated}, put)()
    return Run(workdir, config, task.data.evaluation, evaluation)


def random_variables(task: Any, seed: int) -> Any:
    """Not as a network begins, where all anchors have one score: the order of equals is no one's.

    Nor does it take the seconds that a network's own initialisers take to compile.
    """
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key in ("scale", "var"):  # of batch normalisation
            return np.ones(leaf.shape, leaf.dtype)
        deviation = math.prod(leaf.shape[:-1]) ** -0.5
        return rng.normal(0, deviation, leaf.shape).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, task.shapes)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def digits_run(data_dir, tmp_path_factory):
    return make_run(small_digits(data_dir), tmp_path_factory.mktemp("digits"), ("average", "raw"))


@pytest.fixture(scope="session")
def scenes_run(data_dir, tmp_path_factory):
    return make_run(small_scenes(data_dir), tmp_path_factory.mktemp("scenes"), ("average",))


@pytest.fixture(scope="session")
def digits_model(digits_run):
    return sasa_jax.load(digits_run.workdir)


@pytest.fixture(scope="session")
def scenes_model(scenes_run):
    return sasa_jax.load(scenes_run.workdir)


@pytest.fixture
def photos(digits_run, tmp_path):
    """Five digits in a folder, and a file that is no image in the middle of them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for place in range(5):
        (folder / f"{place}.png").write_bytes(digits_run.split[place]["image"])
    (folder / "2_broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture
def traces(monkeypatch):
    """The images of every trace of a classifier's program."""
    calls: list[jax.Array] = []
    predict = Classification.predict

    def counted(self, variables, images, **options):
        calls.append(images)
        return predict(self, variables, images, **options)

    monkeypatch.setattr(Classification, "predict", counted)
    return calls
