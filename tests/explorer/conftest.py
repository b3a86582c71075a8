"""Two small networks with random weights, and what they see in one image each."""

import math
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from sasa_jax.explorer import explain, write_page
from sasa_jax.prediction import make_predictor
from sasa_jax.tasks import task_without_data
from tests.training.small_digits import small_digits
from tests.training.small_scenes import small_scenes

NAMES = [f"class {number}" for number in range(10)]


def predictor(config):
    config |= {"class_names": NAMES}
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):  # of batch normalisation
            return np.ones(leaf.shape, leaf.dtype)
        return rng.normal(0, math.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(leaf.dtype)

    shapes = task_without_data(config, NAMES).shapes
    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    return make_predictor(config, variables, step=1234, source="a test")


@pytest.fixture(scope="session")
def photo(tmp_path_factory) -> Path:
    """Smooth colours with a disc, larger than wide, in a file whose name has to be escaped."""
    y, x = np.mgrid[:120, :90] / 120
    picture = np.stack([y, x, 1 - y], axis=-1) * 200
    picture[np.hypot(y - 0.4, x - 0.3) < 0.2] = (250, 40, 10)
    path = tmp_path_factory.mktemp("photo") / "a <b>$1&.png"
    assert cv2.imwrite(str(path), picture.astype(np.uint8))
    return path


@pytest.fixture(scope="session")
def classifier():
    """Attention stem, three blocks with 5x5 windows, one of them with stride 2, on 32x32."""
    options = dict(model__blocks=(1, 2), model__attention_groups=(1, 2), model__window=5)
    return predictor(small_digits(Path(), **options))


@pytest.fixture(scope="session")
def detector():
    """Attention in pyramid and heads on a convolutional backbone, on 64x64."""
    options = dict(
        model__attention_groups=(),
        detector__heads="attention",
        detector__fpn="attention",
        data__image_size=64,
    )
    return predictor(small_scenes(Path(), **options))


@pytest.fixture(scope="session")
def seen(classifier, photo):
    return explain(classifier, photo)


@pytest.fixture(scope="session")
def found(detector, photo):
    return explain(detector, photo)


@pytest.fixture(scope="session")
def seen_page(seen, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("seen") / "page.html"
    write_page(path, seen)
    return path


@pytest.fixture(scope="session")
def found_page(found, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("found") / "page.html"
    write_page(path, found)
    return path
