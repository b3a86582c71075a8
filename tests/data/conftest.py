from pathlib import Path

import pytest

from sasa_jax.data import open_split


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_dir in which digits are prepared."""
    folder = tmp_path_factory.mktemp("tfds")
    open_split("digits", "train", folder)
    return folder
