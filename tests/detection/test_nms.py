"""Suppression equals plain greedy suppression, to the index."""

import functools

import jax
import numpy as np
import pytest

from sasa_jax.detection.nms import non_maximum_suppression
from tests.detection.scenes import plain_nms, random_boxes

SCENES, M, D = 6, 60, 40
THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


@functools.cache
def batched():
    """Compiled once for all thresholds."""
    one = functools.partial(non_maximum_suppression, max_outputs=D)
    return jax.jit(
        lambda boxes, scores, classes, threshold: jax.vmap(
            lambda *scene: one(*scene, iou_threshold=threshold)
        )(boxes, scores, classes)
    )


def check(boxes, scores, classes, threshold) -> np.ndarray:
    scores, classes = scores.astype(np.float32), classes.astype(np.int32)
    found = np.asarray(batched()(boxes, scores, classes, threshold))
    for scene in range(SCENES):
        expected = plain_nms(boxes[scene], scores[scene], classes[scene], threshold, D)
        np.testing.assert_array_equal(found[scene], expected)
    return found


def test_random_boxes():
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, SCENES, M, side=24)
    scores, classes = rng.normal(size=(SCENES, M)), rng.integers(0, 2, (SCENES, M))
    found = [check(boxes, scores, classes, threshold) for threshold in THRESHOLDS]
    # Each threshold has work to do.
    assert len({kept.tobytes() for kept in found}) == len(THRESHOLDS)


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_equal_scores_and_equal_boxes(threshold):
    rng = np.random.default_rng(1)
    boxes = random_boxes(rng, SCENES, M, side=16)
    boxes[:, M // 2 :] = boxes[:, : M // 2]
    scores = rng.integers(0, 3, (SCENES, M))
    scores[0] = 0
    check(boxes, scores, rng.integers(0, 2, (SCENES, M)), threshold)


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_chains(threshold):
    """Each box overlaps its neighbours more than the threshold, so that whom one drops counts."""
    steps = np.float32([1, 2, 3, 4, 5, 7])  # IoU of neighbours 15/17 down to 9/23
    left = steps[:, None] * np.arange(M, dtype=np.float32)
    boxes = np.stack([0 * left, left, 0 * left + 8, left + 16], axis=-1)
    rng = np.random.default_rng(2)
    classes = np.zeros((SCENES, M), int)
    down = np.broadcast_to(-np.arange(M), (SCENES, M))
    found = check(boxes, down, classes, threshold)
    # In order of the chain every k-th box stays, the first k that overlaps no more than allowed.
    k = next(k for k in range(1, 17) if max(16 - k, 0) / (16 + k) <= np.float32(threshold))
    np.testing.assert_array_equal(found[0][: M // k], np.arange(0, M - M % k, k)[: M // k][:D])
    check(boxes, -down, classes, threshold)
    check(boxes, rng.permuted(down, axis=1), classes, threshold)


def test_an_overlap_of_just_the_threshold_is_kept():
    boxes = np.float32([[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 4.75]])
    found = non_maximum_suppression(
        boxes,
        np.float32([3, 2, 1]),
        np.zeros(3, np.int32),
        iou_threshold=0.5,
        max_outputs=3,
    )
    np.testing.assert_array_equal(found, [0, 1, -1])  # the third overlaps the second by 0.95


def test_empty_boxes_absent_boxes_and_more_outputs_than_boxes():
    boxes = np.float32([[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 9, 9], [0, 0, 9, 9]])
    found = non_maximum_suppression(
        boxes,
        np.float32([5, 4, -np.inf, -7]),
        np.zeros(4, np.int32),
        iou_threshold=0.5,
        max_outputs=6,
    )
    np.testing.assert_array_equal(found, [0, 1, 3, -1, -1, -1])
