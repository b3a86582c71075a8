"""The detector and its loss against PyTorch in float64, as test_network_parity.py."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch", reason="the independent reference needs PyTorch")

from sasa_jax.detection import Anchors, detection_loss  # noqa: E402
from sasa_jax.detection.matching import match  # noqa: E402
from sasa_jax.models import create_retinanet  # noqa: E402
from tests.parity import torch_retinanet  # noqa: E402
from tests.parity.comparison import compare  # noqa: E402

FLOAT64 = {"dtype": jnp.float64, "param_dtype": jnp.float64}
BACKBONE = {"blocks": (1, 1, 1, 1), "width": 0.125, "num_heads": 2}
CONVOLUTION = BACKBONE | {"stem": "conv", "attention_groups": ()}
SMALL = {"num_classes": 3, "anchors_per_place": 2, "features": 8, "tower_depth": 1}
BOTH = {"fpn": "attention", "heads": "attention", "num_heads": 2}

# Maps of 8x20, 4x10, 2x5, 1x3 and 1x2, and for backbones that take any size of 9x17 to 1x2. None is
# 1x1: there the heads' BN takes the pyramid's last bias out again.
SIZE, ODD = (64, 160), (72, 136)

# Backbone, detector, image size. Options that do not touch one another share a network.
DETECTORS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[int, int]]] = {
    "convolution": (CONVOLUTION, {"tower_depth": 2}, ODD),
    "attention": (
        CONVOLUTION | {"attention_groups": (3, 4), "window": 3},
        BOTH | {"fpn_window": 3, "head_window": 5},
        SIZE,
    ),
    "attention on odd maps, residual, rms, mask": (
        CONVOLUTION,
        BOTH | {"residual": True, "query_key_norm": "rms", "boundary": "mask"},
        ODD,
    ),
    "heads alone, full backbone, grouped, per head, scale": (
        BACKBONE | {"stem": "attention", "window": 3, "query_key_norm": "rms"},
        {
            "heads": "attention",
            "num_heads": 4,
            "residual": True,
            "per_head_embeddings": True,
            "grouped_projections": True,
            "logit_scale": "inverse_sqrt",
        },
        SIZE,
    ),
    "fpn alone, no content": (
        CONVOLUTION | {"bn_decay": 0.7, "bn_epsilon": 1e-2},
        {"fpn": "attention", "num_heads": 1, "content": False, "query_key_norm": "rms"},
        SIZE,
    ),
    "c5, three groups, sinusoidal, bn_group_size": (
        CONVOLUTION | {"blocks": (1, 1, 1), "bn_group_size": 3, "bn_epsilon": 0.1},
        {"heads": "attention", "num_heads": 2, "coarse_from": "c5", "position": "sinusoidal"},
        ODD,
    ),
}


def detectors(backbone: dict[str, Any], options: dict[str, Any]) -> tuple[Any, torch.nn.Module]:
    """The JAX detector's builder, and PyTorch's."""
    options = SMALL | options
    named = {"name": "sa_resnet26", **backbone, **FLOAT64}
    return (
        lambda: create_retinanet(named, rngs=nnx.Rngs(0), **options),
        torch_retinanet.RetinaNet(backbone, **options),
    )


# The others take half a minute each to compile.
QUICK = ("convolution", "attention", "heads alone, full backbone, grouped, per head, scale")


# Evaluation differs by the BN's statistics alone: two networks will do.
@pytest.mark.parametrize(
    ("name", "train"),
    [
        *(
            pytest.param(name, True, marks=[] if name in QUICK else pytest.mark.slow)
            for name in DETECTORS
        ),
        ("convolution", False),
        pytest.param("attention", False, marks=pytest.mark.slow),
    ],
    ids=lambda value: {True: "train", False: "eval"}.get(value, value),
)
def test_detector(x64: None, name: str, train: bool) -> None:
    backbone, options, size = DETECTORS[name]
    images = np.random.default_rng(0).normal(size=(6, *size, 3))
    compare(*detectors(backbone, options), images, train)


def test_anchors() -> None:
    ours = Anchors().boxes(ODD)
    np.testing.assert_allclose(ours, torch_retinanet.anchor_boxes(*ODD), rtol=1e-6, atol=1e-4)


# Of three images: objects of about the size of one anchor of each level, and between two; none; two
# that overlap. That some reach far out of the image is of no concern to the loss.
OBJECTS = [
    [
        ([10.0, 20.0, 44.0, 50.0], 2),
        ([0.0, 40.0, 64.0, 110.0], 0),
        ([-50.0, -40.0, 78.0, 88.0], 1),
        ([-96.0, -100.0, 160.0, 170.0], 0),
        ([-190.0, -190.0, 318.0, 330.0], 2),
    ],
    [],
    [([8.0, 8.0, 40.0, 40.0], 1), ([12.0, 10.0, 46.0, 44.0], 0)],
]


def test_gradients_of_the_loss(x64: None) -> None:
    """The whole step that training differentiates: network, matching, focal and box loss."""
    anchors = torch_retinanet.anchor_boxes(*SIZE)
    boxes = np.ones((3, 6, 4))
    classes, valid = np.zeros((3, 6), np.int32), np.zeros((3, 6), bool)
    for image, objects in enumerate(OBJECTS):
        for slot, (box, label) in enumerate(objects):
            boxes[image, slot], classes[image, slot], valid[image, slot] = box, label, True
    matches = jax.vmap(match, in_axes=(None, 0, 0))(jnp.asarray(anchors.numpy()), boxes, valid)
    assert matches.positive.sum() > 10 and matches.ignored.sum() > 5

    def ours(logits: jax.Array, codes: jax.Array) -> jax.Array:
        return detection_loss(logits, codes, jnp.asarray(anchors.numpy()), boxes, classes, valid)[0]

    def theirs(logits: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return torch_retinanet.detection_loss(logits, codes, anchors, OBJECTS)

    compare(
        *detectors(CONVOLUTION, BOTH | {"anchors_per_place": 6, "fpn_window": 3}),
        np.random.default_rng(0).normal(size=(3, *SIZE, 3)),
        train=True,
        losses=(ours, theirs),
    )
