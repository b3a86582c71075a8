"""Anchors to boxes: against a plain form, at the bands' edges, with ties and without boxes."""

import functools

import jax
import numpy as np
import pytest

from sasa_jax.detection import Anchors
from sasa_jax.detection.matching import match
from tests.detection.scenes import plain_iou, random_boxes

jitted = jax.jit(match, static_argnames=("low_quality",))
ROW = np.float32([[0, x, 10, x + 10] for x in (0, 20, 40, 60)])


def plain_match(anchors, boxes, valid, low_quality):
    overlap = np.array([[plain_iou(a, b) for b in boxes] for a in anchors])
    overlap[:, ~valid] = -1
    index, best = overlap.argmax(axis=1), overlap.max(axis=1)
    positive = best >= 0.5
    ignored = (best >= 0.4) & (best < 0.5)
    if low_quality:
        for box in reversed(np.flatnonzero(valid)):
            anchor = overlap[:, box].argmax()
            if overlap[anchor, box] > 0:
                index[anchor], positive[anchor], ignored[anchor] = box, True, False
    return index, positive, ignored


@pytest.mark.parametrize("low_quality", [False, True])
def test_against_a_plain_form(low_quality):
    anchors = Anchors(size=2.0, levels=(3, 4)).boxes((64, 64))
    anchors = np.round(anchors)  # exact areas, exact ties
    rng = np.random.default_rng(0)
    boxes, valid = random_boxes(rng, 4, 10), rng.random((4, 10)) < 0.7
    boxes[:, 1] = boxes[:, 0]  # two boxes at one place
    boxes[0, 2], boxes[0, 3] = [7, 7, 8, 8], [0, 63, 64, 64]  # one pixel; one along the border
    valid[3] = False
    found = jax.jit(
        jax.vmap(functools.partial(match, low_quality=low_quality), in_axes=(None, 0, 0))
    )(anchors, boxes, valid)
    for image in range(4):
        index, positive, ignored = plain_match(anchors, boxes[image], valid[image], low_quality)
        np.testing.assert_array_equal(found.positive[image], positive)
        np.testing.assert_array_equal(found.ignored[image], ignored)
        np.testing.assert_array_equal(found.index[image][positive], index[positive])
    assert found.positive[:3].any() and found.ignored[:3].any()
    assert not found.positive[3].any() and not found.ignored[3].any()


def test_the_bands_include_their_lower_edges():
    # IoU 1/2, 2/5, just below 2/5, 0.
    boxes = np.float32([[0, 0, 10, 5]])
    anchors = np.float32([[0, 0, 10, 10], [0, 0, 10, 12.5], [0, 0, 10, 12.75], [50, 50, 60, 60]])
    found = jitted(anchors, boxes, np.array([True]))
    np.testing.assert_array_equal(found.positive, [True, False, False, False])
    np.testing.assert_array_equal(found.ignored, [False, True, False, False])


def test_of_equal_boxes_the_first_valid_one():
    boxes = np.stack([ROW[0]] * 3)
    found = jitted(ROW, boxes, np.array([False, True, True]))
    np.testing.assert_array_equal(found.positive, [True, False, False, False])
    assert found.index[0] == 1


def test_low_quality_takes_one_anchor_a_box():
    # Equally far from the anchors 1 and 2 (IoU 1/14 each); then two boxes best served by anchor 3.
    boxes = np.float32([[0, 25, 10, 45], [0, 60, 10, 63], [0, 60, 10, 64], [90, 90, 95, 95]])
    found = jitted(ROW, boxes, np.array([True, True, True, True]), low_quality=True)
    np.testing.assert_array_equal(found.positive, [False, True, False, True])
    assert (found.index[1], found.index[3]) == (0, 1)
    assert not found.ignored.any()  # anchor 3 overlaps the third box by 0.4
    plain = jitted(ROW, boxes, np.array([True, True, True, True]))
    assert not plain.positive.any() and plain.ignored[3]


def test_thresholds_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match="background must not be above foreground"):
        match(ROW, ROW, np.ones(4, bool), foreground=0.3, background=0.4)
