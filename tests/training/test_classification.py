"""The classification task on a part of the digits: loss, evaluation, options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import digits, resnet50, sa_resnet50
from sasa_jax.data import MEAN_RGB, STD_RGB, DatasetError
from sasa_jax.models import list_models, model_options
from sasa_jax.tasks import Classification
from sasa_jax.tasks.classification import normalise
from sasa_jax.tasks.classification_data import AbsentSplit, ClassificationData, open_data, transform
from sasa_jax.training import data_mesh, make_plan, put_batch


def small_digits(data_dir, **overrides):
    """configs/digits.py with one narrow block; overrides by dotted key."""
    config = digits.get_config()
    config.update_from_flattened_dict(
        {
            "model.blocks": (1,),
            "model.attention_groups": (1,),
            "model.width": 0.25,
            "model.window": 3,
            "batch_size": 16,
            "eval_batch_size": 60,
            "data.dir": str(data_dir),
            "data.eval_split": "test[:150]",
            "data.threads": 1,
            **overrides,
        }
    )
    return config.to_dict()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def task(data_dir):
    config = small_digits(data_dir)
    return Classification(config, open_data(config))


@pytest.fixture(scope="module")
def variables(task):
    return jax.jit(task.init)(jax.random.key(0))


def score(task, variables):
    mesh = data_mesh()
    with jax.set_mesh(mesh):
        return task.evaluate(variables, lambda batch: put_batch(batch, mesh))


def test_normalise_is_per_channel():
    image = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    expected = (image.astype(np.float64) - MEAN_RGB) / STD_RGB
    np.testing.assert_allclose(normalise(jnp.asarray(image)), expected, rtol=1e-6)


def test_loss_is_smoothed_cross_entropy(task, variables):
    with task.train_batches() as batches:
        batch = next(batches)
    loss, (batch_stats, scalars) = jax.jit(task.loss)(variables, batch, jax.random.key(0))
    model = task.build_model()
    graphdef, _ = nnx.split(model)
    params, stats = variables["params"], variables["batch_stats"]
    logits = np.asarray(
        nnx.merge(graphdef, {**nnx.State({})}) if False else _logits(task, params, stats, batch),
        np.float64,
    )
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    picked = log_p[np.arange(16), batch["label"]]
    expected = -(0.9 * picked + 0.1 * log_p.mean(axis=1)).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(scalars["accuracy"]) == (logits.argmax(axis=1) == batch["label"]).mean()
    assert jax.tree.structure(batch_stats) == jax.tree.structure(stats)
