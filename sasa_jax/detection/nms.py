"""Non-maximum suppression, exactly greedy and of static shape."""

import jax
import jax.numpy as jnp

from sasa_jax.detection.boxes import edges, iou_of_edges


def non_maximum_suppression(
    boxes: jax.Array,
    scores: jax.Array,
    classes: jax.Array,
    *,
    iou_threshold: float,
    max_outputs: int,
) -> jax.Array:
    """The indices that greedy suppression within each class keeps, best score first.

    The best box left is kept, of equals the first; all of its class that overlap it by more than
    `iou_threshold` are dropped; and so on. Each of the `max_outputs` rounds is a handful of passes
    over M numbers and needs no [M, M] matrix of overlaps.

    Args:
        boxes: [M, 4].
        scores: [M], any finite numbers; -inf takes a box out.
        classes: integer [M].
        iou_threshold: from 0 to 1.
        max_outputs: D, static.

    Returns:
        int32 [D], -1 where no box was left.
    """

    # One array for each edge, taken apart once: on CPU a round is three times as fast.
    every = edges(jnp.asarray(boxes))
    classes = jnp.asarray(classes)
    number = jnp.arange(boxes.shape[0], dtype=jnp.int32)

    def keep_best(scores: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        # The argmax, as two reductions that the CPU vectorises.
        highest = scores.max()
        best = jnp.where(scores == highest, number, number.size).min()
        overlap = iou_of_edges(tuple(edge[best] for edge in every), every)
        dropped = (overlap > iou_threshold) & (classes == classes[best])
        dropped |= number == best  # by name: an empty box does not even overlap itself
        return jnp.where(dropped, -jnp.inf, scores), jnp.where(highest > -jnp.inf, best, -1)

    return jax.lax.scan(keep_best, scores, None, length=max_outputs)[1]
