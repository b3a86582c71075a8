"""Nesterov SGD with warm-up and cosine decay (paper, section 4.1)."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

WeightDecayOn = Literal["kernels", "all"]


def make_schedule(peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Linear from 0 to `peak` over the warm-up, then half a cosine down to 0 at `total_steps`."""
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup_steps else peak,
        peak_value=peak,
        warmup_steps=warmup_steps,
        decay_steps=total_steps,
        end_value=0.0,
    )
    # Optax mixes the integer step with floats, which strict dtype promotion forbids.
    return lambda step: schedule(jnp.asarray(step, jnp.float32))


def weight_decay_mask(params: Any, decay_on: WeightDecayOn = "kernels") -> Any:
    """True for each parameter that decays.

    "kernels" are the leaves of that name, so that scales and biases of BN, other biases and
    position embeddings are left alone; "all" is every parameter.

    Raises:
        ValueError: another value of `decay_on`.
    """
    if decay_on not in ("kernels", "all"):
        raise ValueError(f"weight_decay_on must be 'kernels' or 'all', got {decay_on!r}")

    def decays(path: tuple[Any, ...], leaf: Any) -> bool:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return decay_on == "all" or name == "kernel"

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(
    schedule: optax.Schedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    weight_decay_on: WeightDecayOn = "kernels",
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """SGD as the field writes it: clip, add the L2 gradient, momentum, then the learning rate.

    The weight decay is added to the gradient before the momentum (it is not AdamW's decoupled
    form), after the clipping, so that only the loss's gradient is clipped.

    Args:
        schedule: learning rate of a step.
        momentum: decay of the velocity, not dampened.
        nesterov: look ahead by one velocity.
        weight_decay: times the parameter, added to its gradient.
        weight_decay_on: see `weight_decay_mask`.
        clip_norm: largest global norm of the gradient; None does not clip.
    """
    return optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm is not None else optax.identity(),
        optax.add_decayed_weights(
            weight_decay, mask=lambda params: weight_decay_mask(params, weight_decay_on)
        ),
        optax.sgd(schedule, momentum=momentum, nesterov=nesterov),
    )
