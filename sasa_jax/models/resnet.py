"""Bottleneck ResNets in which any group of blocks may be attention (paper, sections 3 and 4)."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Dtype

from sasa_jax.checks import check_choice
from sasa_jax.nn import AttentionStem, BatchNorm, ConvStem
from sasa_jax.nn.attention import LogitScale, Position, QueryKeyNorm
from sasa_jax.nn.spatial import call_spatial, spatial_layer
from sasa_jax.nn.stems import StemValues
from sasa_jax.ops.local_attention.contract import Boundary

EXPANSION = 4
_HE = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class Bottleneck(nnx.Module):
    """1x1, spatial layer, 1x1, with BN after each and a shortcut around all (ResNet v1.5).

    The spatial layer is a 3x3 convolution with the block's stride, or local self-attention at the
    input's resolution followed at once, where the stride is 2, by a 2x2 average pool; that place
    follows from the paper's FLOPS. BN and ReLU come after the pool.

    Args:
        in_features: channels of the input.
        features: of the spatial layer; the output has 4 times as many.
        stride: 1 or 2.
        attention: keyword arguments of `LocalSelfAttention`, or None for a convolution.
        batch_norm: keyword arguments of `BatchNorm`.
        zero_init_last_bn: the block starts out as its shortcut.
        dtype, param_dtype, rngs: as everywhere.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        stride: int,
        attention: dict[str, Any] | None,
        batch_norm: dict[str, Any],
        zero_init_last_bn: bool,
        dtype: Dtype,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        types = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        out_features = EXPANSION * features
        conv = dict(use_bias=False, kernel_init=_HE, **types)
        self.stride = stride
        self.conv1 = nnx.Conv(in_features, features, (1, 1), **conv)
        self.bn1 = BatchNorm(features, **batch_norm, **types)
        self.spatial = spatial_layer(
            features, features, stride=stride, attention=attention, kernel_init=_HE, **types
        )
        self.bn2 = BatchNorm(features, **batch_norm, **types)
        self.conv3 = nnx.Conv(features, out_features, (1, 1), **conv)
        last = nnx.initializers.zeros if zero_init_last_bn else nnx.initializers.ones
        self.bn3 = BatchNorm(out_features, scale_init=last, **batch_norm, **types)
        # NNX fixes at the first assignment whether an attribute holds arrays.
        if stride == 1 and in_features == out_features:
            self.shortcut_conv = self.shortcut_bn = None
        else:
            self.shortcut_conv = nnx.Conv(in_features, out_features, (1, 1), strides=stride, **conv)
            self.shortcut_bn = BatchNorm(out_features, **batch_norm, **types)

    def __call__(
        self, x: jax.Array, *, train: bool, return_weights: bool = False
    ) -> tuple[jax.Array, jax.Array | None]:
        """x [B, H, W, C] -> [B, H/stride, W/stride, 4 features], and the attention weights.

        The weights are None unless asked for and the spatial layer is attention.
        """
        y = nnx.relu(self.bn1(self.conv1(x), train=train))
        y, weights = call_spatial(
            self.spatial, y, stride=self.stride, return_weights=return_weights
        )
        y = nnx.relu(self.bn2(y, train=train))
        y = self.bn3(self.conv3(y), train=train)
        shortcut = x
        if self.shortcut_conv is not None:
            shortcut = self.shortcut_bn(self.shortcut_conv(x), train=train)
        return nnx.relu(y + shortcut), weights


class ResNet(nnx.Module):
    """ResNet for classification, with convolution or attention as its spatial layers.

    `create_model` builds the paper's networks by name; the options below turn one into another.

    Args:
        num_classes: width of the classifier; None leaves it out, for a network that is a backbone.
        blocks: blocks of each group; every group after the first halves the resolution.
        width: one factor on every width (stem and groups are 64, 64, 128, 256, 512 at 1.0).
        stem: "conv" or "attention".
        attention_groups: the groups, counted from 1, whose spatial layers are attention (table 3).
        window: K, for all attention groups or one for each group of `blocks` (table 4).
        num_heads: N of the attention layers.
        position, content, boundary, logit_scale, per_head_embeddings, grouped_projections,
        query_key_norm, query_key_init_scale, embedding_init_std, implementation: as in
            `LocalSelfAttention`.
        stem_values, stem_mixtures, stem_heads, stem_relative: as in `AttentionStem`.
        bn_group_size, bn_decay, bn_epsilon: as in `BatchNorm`.
        zero_init_last_bn: every block starts out as its shortcut.
        dtype: of the computation, e.g. "bfloat16"; logits are float32 at least.
        param_dtype: of the parameters.
        rngs: streams for the initialisers.

    Raises:
        ValueError: an option that is not allowed; the message names it.
    """

    def __init__(
        self,
        *,
        num_classes: int | None = 1000,
        blocks: tuple[int, ...] = (3, 4, 6, 3),
        width: float = 1.0,
        stem: Literal["conv", "attention"] = "conv",
        attention_groups: tuple[int, ...] = (),
        window: int | tuple[int, ...] = 7,
        num_heads: int = 8,
        position: Position = "relative",
        content: bool = True,
        boundary: Boundary = "zero",
        logit_scale: LogitScale = "none",
        per_head_embeddings: bool = False,
        grouped_projections: bool = False,
        query_key_norm: QueryKeyNorm = "none",
        query_key_init_scale: float = 0.0625,
        embedding_init_std: float = 1.0,
        stem_values: StemValues = "spatial",
        stem_mixtures: int = 4,
        stem_heads: int = 4,
        stem_relative: bool = True,
        bn_group_size: int | None = None,
        bn_decay: float = 0.9,
        bn_epsilon: float = 1e-5,
        zero_init_last_bn: bool = True,
        dtype: Dtype = "float32",
        param_dtype: Dtype = "float32",
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        check_choice("stem", stem, ("conv", "attention"))
        groups = range(1, len(blocks) + 1)
        windows = (window,) * len(blocks) if isinstance(window, int) else tuple(window)
        if len(windows) != len(blocks):
            raise ValueError(
                f"window must be one odd integer or one for each of the {len(blocks)} groups, "
                f"got {window}"
            )
        for group in attention_groups:
            if group not in groups:
                raise ValueError(
                    f"attention_groups must name groups from 1 to {len(blocks)}, got {group} in "
                    f"{tuple(attention_groups)}"
                )
        types = dict(dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(param_dtype), rngs=rngs)
        batch_norm = dict(group_size=bn_group_size, decay=bn_decay, epsilon=bn_epsilon)
        initialisation = dict(
            query_key_init_scale=query_key_init_scale, embedding_init_std=embedding_init_std
        )
        attention = dict(
            num_heads=num_heads,
            position=position,
            content=content,
            boundary=boundary,
            logit_scale=logit_scale,
            per_head_embeddings=per_head_embeddings,
            grouped_projections=grouped_projections,
            query_key_norm=query_key_norm,
            implementation=implementation,
            **initialisation,
        )
        features = _scaled(64, width)
        if stem == "conv":
            self.stem = ConvStem(features, batch_norm=batch_norm, **types)
        else:
            self.stem = AttentionStem(
                features,
                batch_norm=batch_norm,
                num_heads=stem_heads,
                values=stem_values,
                mixtures=stem_mixtures,
                relative=stem_relative,
                **initialisation,
                **types,
            )
        self.blocks = tuple(blocks)
        self.has_attention = stem == "attention" or bool(attention_groups)
        for group in groups:
            in_group = nnx.Dict()
            group_features = _scaled(64 * 2 ** (group - 1), width)
            for index in range(1, blocks[group - 1] + 1):
                in_group[f"block{index}"] = Bottleneck(
                    features,
                    group_features,
                    stride=2 if group > 1 and index == 1 else 1,
                    attention=dict(attention, window=windows[group - 1])
                    if group in attention_groups
                    else None,
                    batch_norm=batch_norm,
                    zero_init_last_bn=zero_init_last_bn,
                    **types,
                )
                features = EXPANSION * group_features
            setattr(self, f"group{group}", in_group)
        # Of the maps that `features` returns.
        self.group_features = tuple(
            EXPANSION * _scaled(64 * 2 ** (group - 1), width) for group in groups
        )
        if num_classes is None:
            self.classifier = None
        else:
            self.classifier = nnx.Linear(
                features, num_classes, kernel_init=nnx.initializers.normal(0.01), **types
            )

    def __call__(
        self, images: jax.Array, *, train: bool = False, return_attention: bool = False
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        """Logits of normalised images.

        Args:
            images, train, return_attention: as in `features`.

        Returns:
            Logits [B, num_classes], float32 at least; on request (logits, weights).

        Raises:
            ValueError: as in `features`, or if the network was built without classifier.
        """
        if self.classifier is None:
            raise ValueError("a ResNet with num_classes=None gives no logits: call `features`")
        maps, attention = self.features(images, train=train, return_attention=return_attention)
        logits = self.classifier(maps[-1].mean(axis=(1, 2)))
        logits = logits.astype(np.promote_types(logits.dtype, jnp.float32))
        return (logits, attention) if return_attention else logits

    def features(
        self, images: jax.Array, *, train: bool = False, return_attention: bool = False
    ) -> tuple[tuple[jax.Array, ...], dict[str, jax.Array]]:
        """The map that each group puts out, and the attention weights.

        Args:
            images: float [B, H, W, 3].
            train: normalise by batch statistics and record them.
            return_attention: return also the weights of every attention layer by its path, e.g.
                "group1/block2": [B, H, W, N, K, K]; "stem": [B, H/4, W/4, N, 16, 16].

        Returns:
            For each group its map [B, H', W', group_features], sizes rounded up, with a stride of 4
            in the first and twice the former's in each other; and the weights, {} unless asked for.

        Raises:
            ValueError: if the images are not [B, H, W, 3] or H or W does not fit the network's
                strides.
        """
        self._check(images)
        attention = {}
        if return_attention and isinstance(self.stem, AttentionStem):
            x, attention["stem"] = self.stem(images, train=train, return_weights=True)
        else:
            x = self.stem(images, train=train)
        maps = []
        for group, count in enumerate(self.blocks, start=1):
            blocks = getattr(self, f"group{group}")
            for index in range(1, count + 1):
                x, weights = blocks[f"block{index}"](
                    x, train=train, return_weights=return_attention
                )
                if weights is not None:
                    attention[f"group{group}/block{index}"] = weights
            maps.append(x)
        return tuple(maps), attention

    def _check(self, images: jax.Array) -> None:
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images must be [B, H, W, 3], got {list(images.shape)}")
        stride = 2 ** (len(self.blocks) + 1)
        if self.has_attention and (images.shape[1] % stride or images.shape[2] % stride):
            raise ValueError(
                f"a network with attention halves its maps by 2x2 pools: height and width must be "
                f"multiples of {stride}, got {images.shape[1]}x{images.shape[2]}"
            )


def _scaled(features: int, width: float) -> int:
    scaled = features * width
    if scaled < 1 or scaled != round(scaled):
        raise ValueError(
            f"width {width} gives {scaled:g} channels where the paper has {features}: choose one "
            f"that gives an integer, e.g. {max(round(scaled), 1) / features:g}"
        )
    return round(scaled)
