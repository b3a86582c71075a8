"""Exponential moving averages of the weights and of the BN statistics that belong to them.

The paper's "BN decay 0.9999" is had by averaging the running statistics with the weights: the
average of the network is one network, evaluated with statistics as old as its weights. The
statistics that go with the raw weights follow the model's own, faster `bn_decay`.
"""

from typing import Any

import jax
import jax.numpy as jnp


def warmed_decay(step: jax.Array, decay: float) -> jax.Array:
    """min(decay, (1 + t) / (10 + t)), float32, for the update after step t = 0, 1, ...

    A fixed 0.9999 would remember the random start for tens of thousands of steps.
    """
    t = step.astype(jnp.float32)
    return jnp.minimum(jnp.float32(decay), (1 + t) / (10 + t))


def update_averages(averages: Any, new: Any, step: jax.Array, decay: float) -> Any:
    """decay * average + (1 - decay) * new, leaf by leaf, in each leaf's dtype."""
    keep = warmed_decay(step, decay)
    return jax.tree.map(
        lambda average, x: average + (1 - keep).astype(x.dtype) * (x - average), averages, new
    )
