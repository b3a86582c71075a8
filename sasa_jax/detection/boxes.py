"""Boxes: areas, overlap, clipping, and the codes that the network predicts.

A box is (top, left, bottom, right) in pixels on the last axis; bottom and right are exclusive, so
that a box of one pixel has the area 1. Every function takes any floating dtype and keeps it.
"""

import math

import jax
import jax.numpy as jnp

Edges = tuple[jax.Array, jax.Array, jax.Array, jax.Array]

MAX_LOG_SCALE = math.log(1000 / 16)
"""The largest logarithm of a box's side over its anchor's that `decode` takes: 62.5 times."""

_MIN_SIDE = 1e-3  # pixels; keeps the logarithm finite for the empty boxes that fill up a batch


def edges(boxes: jax.Array) -> Edges:
    """Boxes [..., 4] as (top, left, bottom, right), [...] each."""
    return boxes[..., 0], boxes[..., 1], boxes[..., 2], boxes[..., 3]


def area(boxes: jax.Array) -> jax.Array:
    """Square pixels [...] of boxes [..., 4]; 0 for a box whose edges are in the wrong order."""
    return _area(*edges(boxes))


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union of every pair.

    Args:
        a: [..., M, 4].
        b: [..., N, 4], with the same leading axes.

    Returns:
        [..., M, N], between 0 and 1; 0 where both boxes are empty.
    """
    return iou_of_edges(edges(a[..., :, None, :]), edges(b[..., None, :, :]))


def iou_of_edges(a: Edges, b: Edges) -> jax.Array:
    """Intersection over union [...] of boxes given as four arrays [...] each."""
    intersection = _area(
        jnp.maximum(a[0], b[0]),
        jnp.maximum(a[1], b[1]),
        jnp.minimum(a[2], b[2]),
        jnp.minimum(a[3], b[3]),
    )
    union = _area(*a) + _area(*b) - intersection
    return jnp.where(union > 0, intersection / jnp.where(union > 0, union, 1), 0)


def clip(boxes: jax.Array, height: jax.Array | float, width: jax.Array | float) -> jax.Array:
    """Boxes [..., 4] cut to an image of `height` x `width` pixels (scalars)."""
    limits = jnp.stack([jnp.asarray(side, boxes.dtype) for side in (height, width, height, width)])
    return jnp.clip(boxes, 0, limits.reshape((1,) * (boxes.ndim - 1) + (4,)))


def encode(boxes: jax.Array, anchors: jax.Array) -> jax.Array:
    """The codes [..., 4] that `decode` turns into `boxes`: (dy, dx, dh, dw) of Faster R-CNN.

    dy and dx are the centre's offset in the anchor's height and width, dh and dw the logarithms of
    the sides' ratios. A side below 0.001 pixels counts as that, so that the codes are finite.

    Args:
        boxes: [..., 4].
        anchors: [..., 4], of the same shape, none of them empty.
    """
    y, x, height, width = _centres(boxes)
    anchor_y, anchor_x, anchor_height, anchor_width = _centres(anchors)
    return jnp.stack(
        [
            (y - anchor_y) / anchor_height,
            (x - anchor_x) / anchor_width,
            jnp.log(jnp.maximum(height, _MIN_SIDE) / anchor_height),
            jnp.log(jnp.maximum(width, _MIN_SIDE) / anchor_width),
        ],
        axis=-1,
    )


def decode(codes: jax.Array, anchors: jax.Array) -> jax.Array:
    """The boxes [..., 4] of codes (dy, dx, dh, dw) [..., 4] at anchors [..., 4].

    dh and dw are held below `MAX_LOG_SCALE`: a code far off is a large box and not an infinite one.
    """
    dy, dx, dh, dw = edges(codes)
    anchor_y, anchor_x, anchor_height, anchor_width = _centres(anchors)
    y = anchor_y + dy * anchor_height
    x = anchor_x + dx * anchor_width
    half_height = anchor_height * jnp.exp(jnp.minimum(dh, MAX_LOG_SCALE)) / 2
    half_width = anchor_width * jnp.exp(jnp.minimum(dw, MAX_LOG_SCALE)) / 2
    return jnp.stack([y - half_height, x - half_width, y + half_height, x + half_width], axis=-1)


def from_xywh(boxes: jax.Array) -> jax.Array:
    """COCO's (left, top, width, height) [..., 4] to (top, left, bottom, right)."""
    left, top, width, height = edges(boxes)
    return jnp.stack([top, left, top + height, left + width], axis=-1)


def to_xywh(boxes: jax.Array) -> jax.Array:
    """(top, left, bottom, right) [..., 4] to COCO's (left, top, width, height)."""
    top, left, bottom, right = edges(boxes)
    return jnp.stack([left, top, right - left, bottom - top], axis=-1)


def _area(top: jax.Array, left: jax.Array, bottom: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.maximum(bottom - top, 0) * jnp.maximum(right - left, 0)


def _centres(boxes: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """y, x, height and width."""
    top, left, bottom, right = edges(boxes)
    return (top + bottom) / 2, (left + right) / 2, bottom - top, right - left
