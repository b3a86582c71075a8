"""From the network's predictions to detections."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from sasa_jax.detection import boxes as box_ops
from sasa_jax.detection.nms import non_maximum_suppression


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["boxes", "scores", "classes", "anchors", "count"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Detections:
    """The D best boxes of every image, best first; a pytree.

    An empty slot has the box 0, the score 0 and the class and the anchor -1.
    """

    boxes: jax.Array  # float32 [B, D, 4]
    scores: jax.Array  # float32 [B, D], 0 to 1
    classes: jax.Array  # int32 [B, D]
    anchors: jax.Array  # int32 [B, D]: the index of the anchor that each was decoded from
    count: jax.Array  # int32 [B]: slots that are not empty


def detect(
    class_logits: jax.Array,
    box_codes: jax.Array,
    anchors: jax.Array,
    level_counts: tuple[int, ...],
    size: jax.Array,
    *,
    score_threshold: float = 0.05,
    candidates_per_level: int = 1000,
    iou_threshold: float = 0.5,
    max_detections: int = 100,
) -> Detections:
    """Decodes a batch of predictions.

    Of every level the `candidates_per_level` best pairs of anchor and class are taken (of equals
    the first), those with a score (the sigmoid of the logit) above `score_threshold` are decoded,
    cut to the image and sent through per-class non-maximum suppression. A box of which nothing is
    left inside the image is no detection.

    Args:
        class_logits: float32 [B, A, classes].
        box_codes: float32 [B, A, 4].
        anchors: float32 [A, 4].
        level_counts: anchors of every level, `Anchors.counts`; static.
        size: integer [B, 2]: height and width of the image, which lies at the top left of what the
            network saw.
        score_threshold: 0 to 1.
        candidates_per_level: static; all where a level has fewer.
        iou_threshold: of the suppression.
        max_detections: D, static.

    Raises:
        ValueError: `level_counts` do not sum to A.
    """
    if sum(level_counts) != anchors.shape[0]:
        raise ValueError(
            f"level_counts must sum to the {anchors.shape[0]} anchors; got {level_counts}, "
            f"which sum to {sum(level_counts)}"
        )
    anchors = jnp.asarray(anchors)

    def one_image(logits: jax.Array, codes: jax.Array, size: jax.Array) -> Detections:
        values, anchor, label = _candidates(
            logits, level_counts, candidates_per_level, score_threshold
        )
        height, width = size.astype(jnp.float32)
        boxes = box_ops.clip(box_ops.decode(codes[anchor], anchors[anchor]), height, width)
        kept = non_maximum_suppression(
            boxes,
            # Logits and not scores, which would tie where they round to 1.
            jnp.where(box_ops.area(boxes) > 0, values, -jnp.inf),
            label,
            iou_threshold=iou_threshold,
            max_outputs=max_detections,
        )
        found = kept >= 0
        return Detections(
            boxes=jnp.where(found[:, None], boxes[kept], 0),
            scores=jnp.where(found, jax.nn.sigmoid(values[kept]), 0),
            classes=jnp.where(found, label[kept], -1),
            anchors=jnp.where(found, anchor[kept], -1),
            count=found.sum(dtype=jnp.int32),
        )

    return jax.vmap(one_image)(class_logits, box_codes, size)


def _candidates(
    logits: jax.Array, level_counts: tuple[int, ...], per_level: int, score_threshold: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logit, anchor and class of every level's best pairs, [M] each; logits [A, classes].

    The logit is -inf where the score is not above the threshold. Of equals the first are taken.

    Each of a level's k best pairs lies in one of the k anchors with the largest maxima: the maximum
    of any of those comes before all that is in the other anchors. So only those anchors, in their
    old order, are searched pair by pair; on CPU that takes a quarter of the time.
    """

    def drop_low(x: jax.Array) -> jax.Array:
        # Before top_k rather than after it, which is quick where most numbers are equal.
        return jnp.where(jax.nn.sigmoid(x) > score_threshold, x, -jnp.inf)

    classes = logits.shape[1]
    maxima = drop_low(logits.max(axis=1))
    parts = []
    first = 0
    for count in level_counts:
        anchor = first + jnp.arange(count, dtype=jnp.int32)
        if count > per_level:
            best = jax.lax.top_k(maxima[first : first + count], per_level)[1]
            anchor = first + jnp.sort(best)
        pairs = drop_low(logits[anchor]).reshape(-1)
        values, place = jax.lax.top_k(pairs, min(per_level, pairs.size))
        parts.append((values, anchor[place // classes], place % classes))
        first += count
    values, anchor, label = (jnp.concatenate(part) for part in zip(*parts, strict=True))
    return values, anchor, label
