"""Decoding equals the plain definition: sort all pairs, decode, suppress one by one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sasa_jax.detection import Anchors, Detections, detect
from sasa_jax.detection import boxes as ops
from tests.detection.scenes import plain_nms

PYRAMID = Anchors(scales=(1.0,), aspect_ratios=(0.25, 1.0, 4.0), levels=(3, 4, 5))
SIDE = 64
ANCHORS = PYRAMID.boxes((SIDE, SIDE))
COUNTS = PYRAMID.counts((SIDE, SIDE))  # 192, 48, 12
CLASSES = 4


def make_predictions(seed: int, images: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(-2, 2, (images, len(ANCHORS), CLASSES)).astype(np.float32)
    codes = rng.normal(0, 0.3, (images, len(ANCHORS), 4)).astype(np.float32)
    size = np.int32([[SIDE, SIDE], [40, SIDE], [33, 17]])[:images]
    return logits, codes, size


@functools.partial(jax.jit, static_argnames=("candidates_per_level", "max_detections"))
def run(logits, codes, size, **options) -> Detections:
    return detect(logits, codes, ANCHORS, COUNTS, size, **options)


@jax.jit
def jitted_boxes(codes, size):
    return ops.clip(ops.decode(codes, ANCHORS), *size.astype(jnp.float32))


def plain_detect(logits, codes, size, score_threshold, per_level, iou_threshold, count):
    """One image, in the order of the definition."""
    pairs = []
    first = 0
    for anchors in COUNTS:
        flat = logits[first : first + anchors].reshape(-1)
        best = np.argsort(-flat, kind="stable")[:per_level]
        pairs += [(first + i // CLASSES, i % CLASSES) for i in best]
        first += anchors
    anchor, label = np.array(pairs).T
    values = logits[anchor, label]
    boxes = np.asarray(ops.clip(ops.decode(codes, ANCHORS)[anchor], float(size[0]), float(size[1])))
    scores = 1 / (1 + np.exp(-np.float64(values)))
    visible = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    ranked = np.where((scores > score_threshold) & visible, values, -np.inf)
    kept = [k for k in plain_nms(boxes, ranked, label, iou_threshold, count) if k >= 0]
    return boxes[kept], scores[kept], label[kept], anchor[kept]


@pytest.mark.parametrize(
    ("score_threshold", "per_level", "iou_threshold", "count"),
    [(0.05, 1000, 0.5, 100), (0.05, 30, 0.5, 100), (0.3, 30, 0.3, 10), (0.0, 60, 0.7, 60)],
)
@pytest.mark.parametrize("tied", [False, True])
def test_against_the_plain_definition(score_threshold, per_level, iou_threshold, count, tied):
    logits, codes, size = make_predictions(0)
    if tied:  # in scores and in overlaps, and on whole pixels, where all arithmetic is exact
        logits = np.round(logits) + np.float32(0)  # -0 to 0: top_k tells them apart, NumPy not
        codes = np.round(codes) * np.float32([1, 1, 0, 0])
    found = run(
        logits,
        codes,
        size,
        score_threshold=score_threshold,
        candidates_per_level=per_level,
        iou_threshold=iou_threshold,
        max_detections=count,
    )
    assert found.boxes.shape == (3, count, 4) and found.boxes.dtype == jnp.float32
    assert found.scores.shape == (3, count) and found.scores.dtype == jnp.float32
    assert found.classes.shape == (3, count) and found.classes.dtype == jnp.int32
    assert found.count.shape == (3,) and found.count.dtype == jnp.int32
    for i in range(3):
        expected = plain_detect(
            logits[i], codes[i], size[i], score_threshold, per_level, iou_threshold, count
        )
        n = len(expected[0])
        assert found.count[i] == n > 0
        np.testing.assert_array_equal(found.classes[i][:n], expected[2])
        np.testing.assert_array_equal(found.anchors[i][:n], expected[3])
        np.testing.assert_allclose(found.boxes[i][:n], expected[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.scores[i][:n], expected[1], rtol=1e-6)
        assert (found.classes[i][n:] == -1).all() and (found.anchors[i][n:] == -1).all()
        assert not found.boxes[i][n:].any() and not found.scores[i][n:].any()


def test_boxes_lie_inside_the_image_and_none_is_empty():
    logits, codes, size = make_predictions(1)
    found = run(logits, codes * 3, size)
    for i in range(3):
        top, left, bottom, right = np.asarray(found.boxes[i][: found.count[i]]).T
        assert (top >= 0).all() and (left >= 0).all()
        assert (bottom <= size[i, 0]).all() and (right <= size[i, 1]).all()
        assert (bottom > top).all() and (right > left).all()
    assert (found.count > 20).all()


def test_nothing_is_found_where_there_is_nothing():
    logits, codes, size = make_predictions(2)
    low = np.full_like(logits, -10)
    low[1] = np.nan  # a network that diverged has no detections either
    found = run(low, codes, size)
    assert not found.count.any()
    assert not found.boxes.any() and not found.scores.any() and (found.classes == -1).all()


def test_scores_that_round_to_one_keep_the_order_of_their_logits():
    logits, codes, size = (part[:1] for part in make_predictions(3))
    logits = np.full_like(logits, -10)
    logits[0, 5, 0], logits[0, 100, 1], logits[0, 200, 2] = 20, 30, 25
    found = run(logits, codes, size)
    np.testing.assert_array_equal(found.scores[0][:4], [1, 1, 1, 0])
    np.testing.assert_array_equal(found.classes[0][:4], [1, 2, 0, -1])


def test_the_order_of_the_batch_does_not_matter():
    logits, codes, size = make_predictions(4)
    found = run(logits, codes, size)
    flipped = run(logits[::-1], codes[::-1], size[::-1])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[::-1]), found, flipped)


def test_levels_that_do_not_fit_the_anchors_are_refused():
    logits, codes, size = make_predictions(5)
    with pytest.raises(ValueError, match=r"level_counts must sum to the 252 anchors.*sum to 251"):
        detect(logits, codes, ANCHORS, (192, 48, 11), size)
