"""Areas, overlap, clipping, codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sasa_jax.detection import boxes as ops
from tests.detection.scenes import plain_iou, random_boxes


def f32(*boxes: list[float]) -> jax.Array:
    return jnp.asarray(boxes, jnp.float32)


def test_area_of_one_pixel_of_nothing_and_of_edges_in_the_wrong_order():
    boxes = f32([2, 3, 3, 4], [2, 3, 2, 9], [5, 5, 1, 1], [0, 0, 4, 2.5])
    np.testing.assert_array_equal(ops.area(boxes), [1, 0, 0, 10])


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0, 0, 4, 4], [0, 0, 4, 4], 1.0),
        ([0, 0, 4, 4], [0, 2, 4, 6], 8 / 24),
        ([0, 0, 4, 4], [4, 0, 8, 4], 0.0),  # they touch: the edges are exclusive
        ([0, 0, 4, 4], [1, 1, 2, 2], 1 / 16),
        ([3, 3, 3, 3], [3, 3, 3, 3], 0.0),  # both empty
        ([3, 3, 3, 3], [0, 0, 8, 8], 0.0),
    ],
)
def test_iou_by_hand(a, b, expected):
    np.testing.assert_array_equal(ops.iou(f32(a), f32(b)), np.float32([[expected]]))


def test_iou_of_every_pair():
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 2, 5), random_boxes(rng, 2, 7)
    expected = [[[plain_iou(x, y) for y in b[i]] for x in a[i]] for i in range(2)]
    np.testing.assert_array_equal(ops.iou(a, b), expected)
    np.testing.assert_array_equal(jax.jit(jax.vmap(ops.iou))(a, b), expected)


def test_clip_keeps_what_is_inside():
    boxes = f32([-3, -2, 5, 7], [1, 2, 3, 4], [8, 9, 90, 91], [-9, -9, -1, -1])
    expected = [[0, 0, 5, 7], [1, 2, 3, 4], [8, 9, 10, 20], [0, 0, 0, 0]]
    np.testing.assert_array_equal(ops.clip(boxes, 10, 20), expected)
    height, width = jnp.asarray([10, 20], jnp.int32)
    np.testing.assert_array_equal(ops.clip(boxes, height, width), expected)


def test_codes_by_hand():
    anchor = f32([0, 0, 10, 20])  # centre 5, 10
    box = f32([5, 0, 15, 40])  # centre 10, 20
    expected = [0.5, 0.5, 0, np.log(2)]
    np.testing.assert_allclose(ops.encode(box, anchor), [expected], rtol=1e-6)


def test_decode_inverts_encode():
    rng = np.random.default_rng(1)
    boxes, anchors = random_boxes(rng, 3, 50), random_boxes(rng, 3, 50)
    anchors[..., 2:] += 8  # no box is more than 62.5 times its anchor
    decoded = ops.decode(ops.encode(boxes, anchors), anchors)
    np.testing.assert_allclose(decoded, boxes, atol=1e-4)


def test_codes_and_their_gradients_are_finite_at_the_extremes():
    anchor = f32([0, 0, 16, 16])
    empty = f32([0, 0, 0, 0])
    assert np.isfinite(ops.encode(empty, anchor)).all()
    far = f32([0, 0, 1e4, 1e4])
    decoded, gradient = jax.vjp(lambda codes: ops.decode(codes, anchor), far)
    np.testing.assert_allclose(decoded, [[-492, -492, 508, 508]])  # 1000 pixels a side
    assert np.isfinite(gradient(jnp.ones_like(decoded))[0]).all()


def test_xywh_and_back():
    np.testing.assert_array_equal(ops.to_xywh(f32([1, 2, 11, 22])), [[2, 1, 20, 10]])
    boxes = random_boxes(np.random.default_rng(2), 4, 3)
    np.testing.assert_array_equal(ops.from_xywh(ops.to_xywh(boxes)), boxes)


def test_the_dtype_is_kept(x64):
    boxes = jnp.asarray([[1.0, 2.0, 5.0, 9.0]], jnp.float64)
    results = (
        ops.area(boxes),
        ops.iou(boxes, boxes),
        ops.clip(boxes, 4, 4),
        ops.encode(boxes, boxes),
        ops.decode(boxes, boxes),
        ops.to_xywh(boxes),
    )
    assert {result.dtype for result in results} == {jnp.dtype("float64")}
