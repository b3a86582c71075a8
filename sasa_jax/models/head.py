"""A head of the detector: class logits or box codes from the maps of the pyramid."""

from typing import Any

import jax
from flax import nnx
from flax.typing import Dtype

from sasa_jax.nn import BatchNorm
from sasa_jax.nn.spatial import call_spatial, spatial_layer

_INIT = nnx.initializers.normal(0.01)


class Head(nnx.Module):
    """A tower of spatial layers, each with BN and ReLU, and a last one that gives the outputs.

    The layers are shared by the levels of the pyramid, the BNs are each level's own. The last layer
    is a 3x3 convolution to the outputs, or attention followed by a 1x1, which mixes its heads; it
    alone has a bias.

    Args:
        features: C of the input and of the tower.
        outputs: numbers for every place.
        depth: layers before the last.
        levels: that the head will be called with.
        attention: keyword arguments of `LocalSelfAttention`, or None for convolutions.
        residual: add the attentions' inputs to their outputs.
        output_bias: what the last bias starts as.
        batch_norm: keyword arguments of `BatchNorm`.
        dtype, param_dtype, rngs: as everywhere.
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        *,
        depth: int,
        levels: tuple[int, ...],
        attention: dict[str, Any] | None,
        residual: bool,
        output_bias: float,
        batch_norm: dict[str, Any],
        dtype: Dtype,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        types = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        layer = dict(attention=attention, kernel_init=_INIT, **types)
        self.depth = depth
        self.residual = residual
        for index in range(1, depth + 1):
            setattr(self, f"layer{index}", spatial_layer(features, features, **layer))
            bns = {f"p{level}": BatchNorm(features, **batch_norm, **types) for level in levels}
            setattr(self, f"bn{index}", nnx.Dict(bns))
        # Attention cannot change the number of channels: the 1x1 after it does.
        self.last = None if attention is None else spatial_layer(features, features, **layer)
        self.output = nnx.Conv(
            features,
            outputs,
            (3, 3) if attention is None else (1, 1),
            padding="SAME",
            kernel_init=_INIT,
            bias_init=nnx.initializers.constant(output_bias),
            **types,
        )

    def __call__(
        self, x: jax.Array, level: int, *, train: bool, return_attention: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """x [B, H, W, C] of that level -> [B, H, W, outputs], and the weights where asked for.

        The weights [B, H, W, N, K, K] are by "layer1/p3" and so on, the last "last/p3".
        """
        attention = {}

        def call(name: str, x: jax.Array) -> jax.Array:
            y, weights = call_spatial(
                getattr(self, name), x, residual=self.residual, return_weights=return_attention
            )
            if weights is not None:
                attention[f"{name}/p{level}"] = weights
            return y

        for index in range(1, self.depth + 1):
            bn = getattr(self, f"bn{index}")[f"p{level}"]
            x = nnx.relu(bn(call(f"layer{index}", x), train=train))
        if self.last is not None:
            x = call("last", x)
        return self.output(x), attention
