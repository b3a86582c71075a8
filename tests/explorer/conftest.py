"""Two small networks with random weights, and what they see in one image each."""

import math
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from flax import nnx

from sasa_jax import local_attention_weights
from sasa_jax.explorer import explain, write_page
from sasa_jax.explorer.network import attention_layers, position_logits, stem_logits
from sasa_jax.explorer.page import LEVELS
from sasa_jax.prediction import make_predictor
from sasa_jax.tasks import normalise, task_without_data
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


@pytest.fixture(scope="session")
def keys(seen):
    """Of every layer with a window, [1, H, W, C]."""
    model, image = seen.model, normalise(seen.image[None])
    capture = nnx.capture(model, nnx.Intermediate, method_outputs=nnx.Intermediate)
    calls = nnx.to_flat_state(capture(image, train=False)[1])
    return {
        "/".join(path[:-3]): value.get_value()[0]
        for path, value in calls
        if path[-3:] == ("spatial", "key", "__call__")
    }


@pytest.fixture(scope="session")
def true_logits(seen, keys):
    """(layer, pixel) -> content and position, [N, K, K] each, up to a number for each head.

    Logarithms of the operator's weights with one part of the logits and then with the other; of the
    stem x_i C x_j and x_i R_ij. With them the most that the page's position may be off.
    """

    def logits(name, pixel):
        layer, (row, column) = attention_layers(seen.model)[name], pixel
        if name == "stem":
            blocks = np.asarray(normalise(seen.image[None]))[0].reshape(8, 4, 8, 4, 3)
            x = blocks[row // 4, :, column // 4].reshape(16, 3)
            content, relative = stem_logits(layer)
            query = 4 * (row % 4) + column % 4
            both = np.einsum("c,nce,je->nj", x[query], content, x), relative[:, query] @ x[query]
            return *(part.reshape(-1, 4, 4) for part in both), np.zeros((4, 4, 4))
        query = seen.queries[name][None]
        tables = layer.row_embedding[...], layer.column_embedding[...]
        key, side = keys[name].reshape(query.shape), 32 // query.shape[1]
        both = (
            local_attention_weights(query, key, window=5),
            local_attention_weights(query, None, *tables, window=5),
        )
        place = 0, row // side, column // side
        bases, coordinates = position_logits(layer, query[0])
        half_steps = np.abs(coordinates).max(axis=(1, 2, 3)) / LEVELS[0][1] / 2
        rows, columns = (np.abs(basis).sum(axis=2) * half_steps[:, None] for basis in bases)
        error = rows[:, :, None] + columns[:, None, :]
        return *(np.log(np.asarray(part)[place]) for part in both), error

    return logits
