"""The detector's loss: focal loss on the classes, Huber loss on the box codes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sasa_jax.detection.boxes import encode
from sasa_jax.detection.matching import Match, match


def focal_loss(
    logits: jax.Array, targets: jax.Array, *, alpha: float = 0.25, gamma: float = 2.0
) -> jax.Array:
    """Focal loss of every element (Lin et al., arXiv 1708.02002, equation 5), [...].

    alpha (1 - p)^gamma (-log p) where the target is 1, and (1 - alpha) p^gamma (-log(1 - p)) where
    it is 0, p = sigmoid(logit). Computed from the logits: values and gradients are finite for any
    finite logit, and gamma may be any number from 0 on.

    Args:
        logits: [...], floating.
        targets: bool [...], or 0 and 1 in any dtype.
        alpha: weight of the ones; that of the zeros is 1 - alpha.
        gamma: how much less the elements count that are right already.
    """
    is_one = targets.astype(bool)
    # With r the probability of the right answer: its logit, -log r and (1 - r)^gamma.
    right = jnp.where(is_one, logits, -logits)
    cross_entropy = jax.nn.softplus(-right)
    modulation = jnp.exp(-gamma * (right + cross_entropy))
    return jnp.where(is_one, alpha, 1 - alpha).astype(logits.dtype) * modulation * cross_entropy


def huber_loss(errors: jax.Array, delta: float = 0.1) -> jax.Array:
    """e^2 / 2 up to |e| = `delta`, delta (|e| - delta / 2) beyond; [...].

    It is delta times the smooth L1 loss of Fast R-CNN with beta = delta.
    """
    size = jnp.abs(errors)
    quadratic = jnp.minimum(size, delta)
    return 0.5 * quadratic**2 + delta * (size - quadratic)


def detection_loss(
    class_logits: jax.Array,
    box_codes: jax.Array,
    anchors: jax.Array,
    boxes: jax.Array,
    classes: jax.Array,
    valid: jax.Array,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    delta: float = 0.1,
    box_weight: float = 10.0,
    foreground: float = 0.5,
    background: float = 0.4,
    low_quality: bool = False,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """RetinaNet's loss of a batch.

    The focal loss is summed over all anchors that are not ignored and all classes, the Huber loss
    over the positive anchors and the four codes; both over the whole batch, and divided by the
    batch's number of positive anchors (or 1). The default `box_weight` of 10 makes the box loss the
    smooth L1 of Detectron's RetinaNet, beta 0.1 and weight 1.

    Args:
        class_logits: [B, A, classes].
        box_codes: [B, A, 4].
        anchors: [A, 4].
        boxes: [B, G, 4], padded.
        classes: integer [B, G], 0 <= class < classes where valid.
        valid: bool [B, G]: False for padding and crowds.
        alpha, gamma: of `focal_loss`.
        delta: of `huber_loss`.
        box_weight: factor on the box loss.
        foreground, background, low_quality: of `match`.

    Returns:
        class_loss + box_weight * box_loss, a float32 scalar, and {"class_loss", "box_loss",
        "positives"}: the two parts, and positive anchors an image. Gradients reach class_logits and
        box_codes alone.
    """
    anchors, boxes = jax.lax.stop_gradient((jnp.asarray(anchors), boxes))
    options = {"foreground": foreground, "background": background, "low_quality": low_quality}
    matches = jax.vmap(functools.partial(match, **options), in_axes=(None, 0, 0))(
        anchors, boxes, valid
    )
    class_sums = jax.vmap(_class_loss, in_axes=(0, 0, 0, None, None))(
        class_logits, classes, matches, alpha, gamma
    )
    box_sums = jax.vmap(_box_loss, in_axes=(0, None, 0, 0, None))(
        box_codes, anchors, boxes, matches, delta
    )
    positives = matches.positive.sum(dtype=jnp.int32)
    divisor = jnp.maximum(positives, 1).astype(class_sums.dtype)
    class_loss = class_sums.sum() / divisor
    box_loss = box_sums.sum() / divisor
    return class_loss + box_weight * box_loss, {
        "class_loss": class_loss,
        "box_loss": box_loss,
        "positives": positives.astype(jnp.float32) / class_logits.shape[0],
    }


# The backward pass recomputes both sums: without that the class loss would keep several arrays as
# large as the logits, [B, A, classes], which are the largest of the whole network.


@functools.partial(jax.checkpoint, static_argnums=(3, 4))
def _class_loss(
    logits: jax.Array, classes: jax.Array, matches: Match, alpha: float, gamma: float
) -> jax.Array:
    """Sum over one image: logits [A, classes], classes [G]."""
    wanted = jnp.where(matches.positive, classes[matches.index], -1)
    targets = wanted[:, None] == jnp.arange(logits.shape[-1], dtype=wanted.dtype)[None]
    losses = focal_loss(logits.astype(_accumulator(logits)), targets, alpha=alpha, gamma=gamma)
    return jnp.where(matches.ignored, 0, losses.sum(axis=1)).sum()


def _box_loss(
    codes: jax.Array, anchors: jax.Array, boxes: jax.Array, matches: Match, delta: float
) -> jax.Array:
    """Sum over one image: codes and anchors [A, 4], boxes [G, 4]."""
    codes = codes.astype(_accumulator(codes))
    errors = codes - encode(boxes[matches.index], anchors).astype(codes.dtype)
    errors = jnp.where(matches.positive[:, None], errors, 0)
    return huber_loss(errors, delta).sum()


def _accumulator(x: jax.Array) -> np.dtype:
    """float32, or float64 where that is given."""
    return np.promote_types(x.dtype, np.float32)
