"""The feature pyramid between a backbone and the heads of a detector (arXiv 1612.03144)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
from flax import nnx
from flax.typing import Dtype

from sasa_jax.checks import check_choice
from sasa_jax.nn import BatchNorm
from sasa_jax.nn.spatial import call_spatial, spatial_layer

CoarseInput = Literal["p5", "c5"]

EXTRA_LEVELS = 2  # beyond the backbone's: P6 and P7


class FeaturePyramid(nnx.Module):
    """Maps of one width at five levels, P3 to P7 on a backbone of four groups.

    Each of the backbone's last three maps goes through a 1x1; the coarser sum is doubled (nearest
    neighbour) and added to the finer map, and a spatial layer follows each sum. P6 and P7 come from
    spatial layers of stride 2, P7 after a ReLU. A BN ends each level.

    Spatial layers are 3x3 convolutions or attention, which a 2x2 average pool follows for stride 2.

    What the paper leaves open, with the default and why:

    * Normalisation: the counts cannot tell BN from none. BN is what detectors of that time had on
      TPUs, and it keeps the sums in the range for which attention is initialised. No convolution
      has a bias: the BN would take it out again.
    * `coarse_from`: P6 from P5, which fits the paper's parameter counts; from C5, as in the first
      RetinaNet, there are 4.1 M more.
    * Convolutions start normal with variance 1 / fan-in: no ReLU follows.

    Args:
        in_features: channels of the backbone's last three maps, finest first.
        features: C of every level.
        levels: of the pyramid, e.g. (3, 4, 5, 6, 7); level l has stride 2**l.
        attention: keyword arguments of `LocalSelfAttention`, or None for convolutions.
        residual: add the attentions' inputs to their outputs.
        coarse_from: what P6 is made of, "p5" or "c5" (the backbone's coarsest map).
        batch_norm: keyword arguments of `BatchNorm`.
        dtype, param_dtype, rngs: as everywhere.

    Raises:
        ValueError: an unknown `coarse_from`, or "c5" with attention, which keeps channels.
    """

    def __init__(
        self,
        in_features: Sequence[int],
        features: int,
        *,
        levels: Sequence[int],
        attention: dict[str, Any] | None,
        residual: bool,
        coarse_from: CoarseInput,
        batch_norm: dict[str, Any],
        dtype: Dtype,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        check_choice("coarse_from", coarse_from, CoarseInput)
        if coarse_from == "c5" and attention is not None:
            raise ValueError(
                "fpn='attention' keeps the number of channels, so it cannot make P6 of C5: use "
                "coarse_from='p5'"
            )
        types = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "normal")
        self.levels = tuple(levels)
        self.lateral_levels = self.levels[:-EXTRA_LEVELS]
        self.coarse_from = coarse_from
        self.residual = residual
        for level, channels in zip(self.lateral_levels, in_features, strict=True):
            lateral = nnx.Conv(
                channels, features, (1, 1), use_bias=False, kernel_init=init, **types
            )
            setattr(self, f"lateral{level}", lateral)
        for level in self.levels:
            from_backbone = coarse_from == "c5" and level == self.lateral_levels[-1] + 1
            layer = spatial_layer(
                in_features[-1] if from_backbone else features,
                features,
                stride=self._stride(level),
                attention=attention,
                kernel_init=init,
                **types,
            )
            setattr(self, f"p{level}", layer)
            setattr(self, f"bn{level}", BatchNorm(features, **batch_norm, **types))

    def __call__(
        self, maps: Sequence[jax.Array], *, train: bool, return_attention: bool = False
    ) -> tuple[dict[int, jax.Array], dict[str, jax.Array]]:
        """Pyramid of the backbone's last three maps.

        Args:
            maps: [B, H, W, in_features], finest first, each half the size of the former rounded up.
            train: normalise by batch statistics and record them.
            return_attention: return the attention weights, by "p3" and so on.

        Returns:
            Of each level its map [B, H', W', C], and the weights [B, H, W, N, K, K] at the
            resolution of the layers' inputs; {} unless asked for.
        """
        merged = self._top_down(maps)
        pyramid: dict[int, jax.Array] = {}
        attention = {}
        for level in self.levels:
            if level in merged:
                x = merged[level]
            elif level > self.lateral_levels[-1] + 1:
                x = nnx.relu(pyramid[level - 1])
            else:
                x = maps[-1] if self.coarse_from == "c5" else pyramid[level - 1]
            x, weights = call_spatial(
                getattr(self, f"p{level}"),
                x,
                stride=self._stride(level),
                residual=self.residual,
                return_weights=return_attention,
            )
            pyramid[level] = getattr(self, f"bn{level}")(x, train=train)
            if weights is not None:
                attention[f"p{level}"] = weights
        return pyramid, attention

    def _stride(self, level: int) -> int:
        return 1 if level in self.lateral_levels else 2

    def _top_down(self, maps: Sequence[jax.Array]) -> Mapping[int, jax.Array]:
        by_level = dict(zip(self.lateral_levels, maps, strict=True))
        merged: dict[int, jax.Array] = {}
        for level in reversed(self.lateral_levels):
            merged[level] = getattr(self, f"lateral{level}")(by_level[level])
            if level + 1 in merged:
                height, width = merged[level].shape[1:3]
                doubled = merged[level + 1].repeat(2, axis=1).repeat(2, axis=2)
                # An odd map was rounded up when it was halved.
                merged[level] += doubled[:, :height, :width]
        return merged
