"""The predictors and the run that the tests export, and no thread of PyTorch's beyond one."""

import jax
import pytest

from sasa_jax import training
from tests.export import common
from tests.training.small_digits import small_digits


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def classifier(data_dir):
    return common.digits(data_dir)


@pytest.fixture(scope="session")
def detector(data_dir):
    return common.scenes(data_dir)


@pytest.fixture(scope="session")
def workdir(classifier, data_dir, tmp_path_factory):
    """A run's folder with a checkpoint of the classifier."""
    config, folder = small_digits(data_dir, **common.DIGITS), tmp_path_factory.mktemp("run")
    stored = config | {"class_names": list(classifier.class_names)}
    variables = jax.device_get(classifier.variables)
    with training.Checkpoints(folder) as checkpoints:
        checkpoints.save(1, {"averages": variables, **variables}, {}, stored)
    return folder
