"""Which anchor has to find which box."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sasa_jax.detection.boxes import iou


class Match(NamedTuple):
    """What every anchor is matched to; an anchor neither positive nor ignored is background."""

    index: jax.Array  # int32 [A]: the box, 0 <= index < G; without meaning unless positive
    positive: jax.Array  # bool [A]
    ignored: jax.Array  # bool [A]


def match(
    anchors: jax.Array,
    boxes: jax.Array,
    valid: jax.Array,
    *,
    foreground: float = 0.5,
    background: float = 0.4,
    low_quality: bool = False,
) -> Match:
    """Matches the anchors of one image to its boxes.

    An anchor belongs to the box that it overlaps most, the first of equals. It is positive from an
    IoU of `foreground`, background below `background`, ignored between them. Without a valid box
    all anchors are background.

    Args:
        anchors: [A, 4].
        boxes: [G, 4], padded.
        valid: bool [G]: False for padding and crowds. G is 1 at least.
        foreground, background: IoU.
        low_quality: also give every valid box the anchor that overlaps it most, whatever their IoU
            (above 0), so that no box goes untrained. Of equal anchors the first; an anchor that is
            the best of several boxes goes to the first of them. (Others take all equal anchors, or
            leave the anchor to another box that it overlaps more.)

    Raises:
        ValueError: background above foreground.
    """
    if background > foreground:
        raise ValueError(
            f"background must not be above foreground ({foreground}); got {background}"
        )
    count = boxes.shape[0]
    overlap = jnp.where(valid[None, :], iou(anchors, boxes), -1)
    index = overlap.argmax(axis=1).astype(jnp.int32)
    best = overlap.max(axis=1)
    positive = best >= foreground
    ignored = (best >= background) & ~positive
    if low_quality:
        found = overlap.max(axis=0) > 0
        numbers = jnp.where(found, jnp.arange(count, dtype=jnp.int32), count)
        owner = jnp.full(anchors.shape[0], count, jnp.int32).at[overlap.argmax(axis=0)].min(numbers)
        forced = owner < count
        index = jnp.where(forced, owner, index)
        positive |= forced
        ignored &= ~forced
    return Match(index, positive, ignored)
