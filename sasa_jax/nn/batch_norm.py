"""Batch normalisation whose statistics can be kept to groups of examples."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Dtype


class BatchNorm(nnx.Module):
    """Batch normalisation over [B, H, W, C].

    Under `jax.jit` a plain mean over the batch is a mean over all devices, whereas the networks of
    the paper's time normalised on each core. `group_size` states that number of examples instead
    of leaving it to the hardware: consecutive groups of `group_size` examples are normalised by
    their own statistics, on any number of devices. None is the whole batch.

    Statistics are computed and kept in float32 (float64 if `param_dtype` is). The variance is the
    biased one, also in the running average, as in Flax. With groups, the running averages take the
    mean over the groups.

    Args:
        features: C.
        group_size: examples that share statistics in training; must divide B.
        decay: of the running averages, running = decay * running + (1 - decay) * batch.
        epsilon: added to the variance.
        scale_init: initialiser of the scale.
        dtype: of the result; None is the input's.
        param_dtype: of scale and bias.
        rngs: streams for the initialiser.
    """

    def __init__(
        self,
        features: int,
        *,
        group_size: int | None = None,
        decay: float = 0.9,
        epsilon: float = 1e-5,
        scale_init: nnx.Initializer = nnx.initializers.ones,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if group_size is not None and group_size < 1:
            raise ValueError(f"bn_group_size must be a positive integer or None, got {group_size}")
        self.features = features
        self.group_size = group_size
        self.decay = decay
        self.epsilon = epsilon
        self.dtype = dtype
        statistics_dtype = np.promote_types(param_dtype, jnp.float32)
        self.scale = nnx.Param(scale_init(rngs.params(), (features,), param_dtype))
        self.bias = nnx.Param(jnp.zeros((features,), param_dtype))
        self.mean = nnx.BatchStat(jnp.zeros((features,), statistics_dtype))
        self.var = nnx.BatchStat(jnp.ones((features,), statistics_dtype))

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x [B, ..., C] -> [B, ..., C]; with `train` by batch statistics, which are recorded.

        Raises:
            ValueError: in training, if the group size does not divide B.
        """
        if not train:
            return self._normalise(x, None)
        grouped = self._grouped(x).astype(self.mean[...].dtype)
        # Mean and mean square in one pass over the activations, which is what this layer costs.
        # About the running mean and not about 0, so that the difference does not cancel.
        centred = grouped - _along_channels(self.mean[...][None], grouped.ndim)
        axes = tuple(range(1, grouped.ndim - 1))
        return self._normalise(x, (centred.mean(axis=axes), jnp.square(centred).mean(axis=axes)))

    def with_moments(
        self, x: jax.Array, mean: jax.Array, square: jax.Array, *, train: bool
    ) -> jax.Array:
        """As a call, where someone else has looked at what is normalised, of which x is a part.

        Args:
            x: [B, ..., C].
            mean, square: [B, C], float32: of each example the mean and the mean square about the
                running mean; all examples count the same.
            train: as in a call.
        """
        if not train:
            return self._normalise(x, None)
        moments = (self._grouped(moment.astype(self.mean[...].dtype)) for moment in (mean, square))
        return self._normalise(x, tuple(moment.mean(axis=1) for moment in moments))

    def _grouped(self, x: jax.Array) -> jax.Array:
        """[B, ...] -> [G, B / G, ...], the groups that share statistics in training."""
        batch = x.shape[0]
        group_size = self.group_size or batch
        if batch % group_size:
            raise ValueError(f"bn_group_size {group_size} does not divide the batch of {batch}")
        return x.reshape(batch // group_size, group_size, *x.shape[1:])

    def _normalise(self, x: jax.Array, moments: tuple[jax.Array, jax.Array] | None) -> jax.Array:
        """By the groups' mean and mean square about the running mean, [G, C] each, or by running
        averages."""
        mean, var = self.mean[...], self.var[...]
        if moments is None:
            group_mean, group_var = mean[None], var[None]
        else:
            shift, square = moments
            group_mean = mean[None] + shift
            group_var = jnp.maximum(square - jnp.square(shift), 0)
            self.mean[...] = self.decay * mean + (1 - self.decay) * group_mean.mean(axis=0)
            self.var[...] = self.decay * var + (1 - self.decay) * group_var.mean(axis=0)
        factor = self.scale[...].astype(mean.dtype)[None] * jax.lax.rsqrt(group_var + self.epsilon)
        bias = self.bias[...].astype(mean.dtype)[None]
        # Only the batch is split: on TPU, merging rows with anything else moves all numbers.
        groups = len(group_mean)
        grouped = x.reshape(groups, -1, *x.shape[1:]).astype(mean.dtype)
        group_mean, factor, bias = (
            _along_channels(array, grouped.ndim) for array in (group_mean, factor, bias)
        )
        y = (grouped - group_mean) * factor + bias
        return y.reshape(x.shape).astype(self.dtype or x.dtype)


def _along_channels(array: jax.Array, ndim: int) -> jax.Array:
    """[G, C] -> [G, 1, ..., 1, C] with `ndim` axes."""
    return array.reshape(len(array), *[1] * (ndim - 2), -1)
