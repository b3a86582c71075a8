"""RetinaNet, each of its parts convolutional or attentional (paper, section 4.2 and table 2)."""

import inspect
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Dtype

from sasa_jax.checks import check_choice, nearest
from sasa_jax.models.fpn import EXTRA_LEVELS, CoarseInput, FeaturePyramid
from sasa_jax.models.head import Head
from sasa_jax.models.registry import create_model, model_options
from sasa_jax.models.resnet import ResNet
from sasa_jax.nn.attention import LogitScale, Position, QueryKeyNorm
from sasa_jax.ops.local_attention.contract import Boundary

Part = Literal["conv", "attention"]


class RetinaNet(nnx.Module):
    """One-stage detector (arXiv 1708.02002): a class logit and a box code for every anchor.

    `create_retinanet` builds it with its backbone. What the paper leaves open, with the default:

    * `anchors_per_place` is 6 and P6 comes from P5 (`coarse_from`): only these fit its parameter
      counts and FLOPS, with 90 classes and towers of 4 layers.
    * `heads` and `fpn`: the text says that both are attention in table 2's last two rows; the
      counts fit attention in the heads alone (21.97 M; in both 20.0 M). Each is an option.
    * BN after each level of the pyramid and in the heads, where each level has its own: as on TPUs
      at that time. No biases in front of it.
    * Convolutions of the heads start normal with standard deviation 0.01, the field's value.

    Not the paper's: `residual` and `query_key_norm`.

    Args:
        backbone: a ResNet without classifier and of three groups or more; the last three are used.
        num_classes: class logits of an anchor, each for itself (sigmoid).
        anchors_per_place: anchors of every place of every level.
        fpn, heads: "conv" or "attention".
        features: width of pyramid and heads.
        tower_depth: layers of each head before its last.
        coarse_from: what P6 is made of, "p5" or "c5".
        prior: probability of every class at the start; the last bias is its logit.
        fpn_window, head_window: K of the attention in pyramid and heads.
        num_heads, position, content, boundary, logit_scale, per_head_embeddings,
        grouped_projections, query_key_norm, query_key_init_scale, embedding_init_std,
        implementation: as in `LocalSelfAttention`, for pyramid and heads.
        value_init_std: of W_V in pyramid and heads, 0.01 in the paper; None is the layer's own,
            1 / sqrt(features).
        residual: add the input of each attention in pyramid and heads to its output.
        bn_group_size, bn_decay, bn_epsilon: as in `BatchNorm`.
        dtype: of the computation; the outputs are float32 at least.
        param_dtype: of the parameters.
        rngs: streams for the initialisers.

    Attributes:
        levels: of the pyramid, finest first: (3, 4, 5, 6, 7) with a backbone of four groups; each
            group less makes them one less. Level l has stride 2**l.

    Raises:
        ValueError: an option that is not allowed; the message names it.
    """

    def __init__(
        self,
        backbone: ResNet,
        *,
        num_classes: int,
        anchors_per_place: int = 6,
        fpn: Part = "conv",
        heads: Part = "conv",
        features: int = 256,
        tower_depth: int = 4,
        coarse_from: CoarseInput = "p5",
        prior: float = 0.01,
        fpn_window: int = 7,
        head_window: int = 7,
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
        value_init_std: float | None = 0.01,
        residual: bool = False,
        bn_group_size: int | None = None,
        bn_decay: float = 0.9,
        bn_epsilon: float = 1e-5,
        dtype: Dtype = "float32",
        param_dtype: Dtype = "float32",
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        check_choice("fpn", fpn, Part)
        check_choice("heads", heads, Part)
        counts = dict(
            num_classes=num_classes,
            anchors_per_place=anchors_per_place,
            features=features,
            tower_depth=tower_depth,
        )
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 < prior < 1:
            raise ValueError(f"prior must be a probability between 0 and 1, got {prior}")
        groups = len(backbone.group_features)
        if groups < 3:
            raise ValueError(
                f"RetinaNet uses its backbone's last three groups, got {groups}: give `blocks` at "
                "least three numbers"
            )
        self.levels = tuple(range(groups - 1, groups + 2 + EXTRA_LEVELS))
        attention = dict(
            num_heads=num_heads,
            position=position,
            content=content,
            boundary=boundary,
            logit_scale=logit_scale,
            per_head_embeddings=per_head_embeddings,
            grouped_projections=grouped_projections,
            query_key_norm=query_key_norm,
            query_key_init_scale=query_key_init_scale,
            embedding_init_std=embedding_init_std,
            value_init_std=value_init_std,
            implementation=implementation,
        )
        common = dict(
            levels=self.levels,
            residual=residual,
            batch_norm=dict(group_size=bn_group_size, decay=bn_decay, epsilon=bn_epsilon),
            dtype=jnp.dtype(dtype),
            param_dtype=jnp.dtype(param_dtype),
            rngs=rngs,
        )
        self.num_classes = num_classes
        self.backbone = backbone
        self.fpn = FeaturePyramid(
            backbone.group_features[-3:],
            features,
            attention=dict(attention, window=fpn_window) if fpn == "attention" else None,
            coarse_from=coarse_from,
            **common,
        )
        head = dict(
            depth=tower_depth,
            attention=dict(attention, window=head_window) if heads == "attention" else None,
            **common,
        )
        prior_logit = -math.log((1 - prior) / prior)
        self.class_head = Head(
            features, anchors_per_place * num_classes, output_bias=prior_logit, **head
        )
        self.box_head = Head(features, anchors_per_place * 4, output_bias=0.0, **head)

    def __call__(
        self, images: jax.Array, *, train: bool = False, return_attention: bool = False
    ) -> tuple[jax.Array, ...]:
        """Class logits and box codes of normalised images.

        Anchors are in the order level by level, row by row, column by column, and then those of a
        place.

        Args:
            images: float [B, H, W, 3].
            train: normalise by batch statistics and record them.
            return_attention: return also the weights of every attention layer by its path, e.g.
                "backbone/group1/block2", "fpn/p3", "class_head/layer1/p3": [B, H, W, N, K, K].

        Returns:
            Class logits [B, A, num_classes] and box codes [B, A, 4], float32 at least; on request
            the weights as a third.

        Raises:
            ValueError: as in `ResNet.features`.
        """
        maps, weights = self.backbone.features(
            images, train=train, return_attention=return_attention
        )
        attention = {f"backbone/{path}": w for path, w in weights.items()}
        pyramid, weights = self.fpn(maps[-3:], train=train, return_attention=return_attention)
        attention |= {f"fpn/{path}": w for path, w in weights.items()}
        outputs = []
        for name, width in (("class_head", self.num_classes), ("box_head", 4)):
            head = getattr(self, name)
            of_levels = []
            for level, x in pyramid.items():
                y, weights = head(x, level, train=train, return_attention=return_attention)
                attention |= {f"{name}/{path}": w for path, w in weights.items()}
                of_levels.append(y.reshape(y.shape[0], -1, width))
            output = jnp.concatenate(of_levels, axis=1)
            outputs.append(output.astype(np.promote_types(output.dtype, jnp.float32)))
        return (*outputs, attention) if return_attention else tuple(outputs)


# What the detector takes over from its backbone.
_INHERITED = ("bn_group_size", "bn_decay", "bn_epsilon", "dtype", "param_dtype")


def retinanet_options() -> dict[str, Any]:
    """Every option of `create_retinanet` beside the arguments that it names, with its default."""
    parameters = inspect.signature(RetinaNet.__init__).parameters.values()
    named = ("self", "backbone", "num_classes", "anchors_per_place", "rngs", *_INHERITED)
    return {p.name: p.default for p in parameters if p.name not in named}


def create_retinanet(
    backbone: Mapping[str, Any],
    *,
    num_classes: int,
    anchors_per_place: int = 6,
    rngs: nnx.Rngs,
    **options: Any,
) -> RetinaNet:
    """Builds a RetinaNet with random parameters.

    Args:
        backbone: "name", one of `list_models()`, and options of `create_model`. Its dtypes and the
            options of its BN are those of the whole detector.
        num_classes: class logits of an anchor.
        anchors_per_place: anchors of every place of every level.
        rngs: e.g. `nnx.Rngs(0)`.
        options: of `RetinaNet`, see `retinanet_options`.

    Raises:
        ValueError: an unknown name, or a value that is not allowed.
        TypeError: an unknown option; the message suggests the nearest.
    """
    allowed = retinanet_options()
    for key in options:
        if key in _INHERITED:
            raise TypeError(f"create_retinanet takes {key} from its backbone: give it there")
        if key not in allowed:
            raise TypeError(
                f"create_retinanet has no option {key!r}{nearest(key, allowed)}; "
                f"there are {', '.join(allowed)}"
            )
    backbone = dict(backbone)
    if backbone.pop("num_classes", None) is not None:
        raise ValueError("a backbone has no classifier: give num_classes to create_retinanet alone")
    if "name" not in backbone:
        raise ValueError("backbone must say which network it is, {'name': 'resnet50', ...}")
    name = backbone.pop("name")
    inherited = {k: v for k, v in (model_options(name) | backbone).items() if k in _INHERITED}
    return RetinaNet(
        create_model(name, rngs=rngs, **backbone, num_classes=None),
        num_classes=num_classes,
        anchors_per_place=anchors_per_place,
        rngs=rngs,
        **inherited,
        **options,
    )
