"""The predictors that the tests export, and no thread of PyTorch's beyond one."""

import pytest

from tests.export import common


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def classifier(data_dir):
    return common.digits(data_dir)


@pytest.fixture(scope="session")
def detector(data_dir):
    return common.scenes(data_dir)
