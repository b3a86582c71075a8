"""Layers, stems and networks against PyTorch in float64: results, every gradient, BN statistics."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch", reason="the independent reference needs PyTorch")

import sasa_jax  # noqa: E402
from sasa_jax import nn  # noqa: E402
from sasa_jax.models import apply, split  # noqa: E402
from tests.parity import torch_networks, torch_reference  # noqa: E402
from tests.parity.common import random_variables, relative_error  # noqa: E402
from tests.parity.comparison import TOLERANCE, compare  # noqa: E402

FLOAT64 = {"dtype": jnp.float64, "param_dtype": jnp.float64}
# 8, 16, 32 and 64 channels; on 64x96 images the last group's maps are 4x6, then 2x3.
SMALL = {"num_classes": 5, "blocks": (1, 1, 1, 1), "width": 0.125, "num_heads": 2}

# Options that do not touch one another share a network: each costs seconds to compile.
NETWORKS: dict[str, dict[str, Any]] = {
    "convolution": {"stem": "conv", "attention_groups": (), "blocks": (1, 2, 1, 1)},
    "conv_stem": {"stem": "conv"},
    "full": {"blocks": (1, 2, 1, 1)},
    "plain_values, no position": {"stem_values": "plain", "position": "none"},
    "conv_values, no content": {"stem_values": "conv", "content": False},
    "mixtures, sinusoidal": {
        "stem_mixtures": 3,
        "stem_heads": 2,
        "stem_relative": False,
        "position": "sinusoidal",
    },
    "mask, per head": {"boundary": "mask", "per_head_embeddings": True, "num_heads": 4},
    "grouped, logit_scale": {"grouped_projections": True, "logit_scale": "inverse_sqrt"},
    "windows, groups 2 to 4": {
        "stem": "conv",
        "attention_groups": (2, 3, 4),
        "window": (3, 5, 7, 9),
    },
    "bn_group_size": {
        "attention_groups": (1, 4),
        "bn_group_size": 2,
        "bn_decay": 0.99,
        "bn_epsilon": 1e-3,
    },
}

ARCHITECTURES = {
    "resnet50": {"stem": "conv", "attention_groups": ()},
    "sa_resnet50": {"stem": "attention"},
    "sa_resnet50_conv_stem": {"stem": "conv"},
}


def random_images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_network(x64: None, options: dict[str, Any], train: bool) -> None:
    options = SMALL | options
    compare(
        lambda: sasa_jax.create_model("sa_resnet26", rngs=nnx.Rngs(0), **options, **FLOAT64),
        torch_networks.ResNet(**options),
        random_images(4, 64, 96, 3),
        train,
    )


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_whole_architecture(x64: None, name: str, train: bool) -> None:
    """As registered: 1000 classes, full width and depth."""
    compare(
        lambda: sasa_jax.create_model(name, rngs=nnx.Rngs(0), **FLOAT64),
        torch_networks.ResNet(**ARCHITECTURES[name]),
        random_images(2, 64, 64, 3),
        train,
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"position": "sinusoidal", "boundary": "mask"},
        {"position": "none", "logit_scale": "inverse_sqrt", "grouped_projections": True},
        {"content": False, "per_head_embeddings": True, "window": 11},
    ],
    ids=["default", "sinusoidal", "none", "no_content"],
)
def test_attention_layer(x64: None, options: dict[str, Any]) -> None:
    """On a 5x7 map, which no tile divides."""
    compare(
        lambda: nn.LocalSelfAttention(24, num_heads=3, rngs=nnx.Rngs(0), **options, **FLOAT64),
        torch_reference.LocalSelfAttention(24, num_heads=3, **options),
        random_images(2, 5, 7, 24),
        train=None,
    )


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    ("stem", "options"),
    [
        ("ConvStem", {}),
        ("AttentionStem", {}),
        ("AttentionStem", {"values": "plain"}),
        ("AttentionStem", {"values": "conv", "num_heads": 2}),
        ("AttentionStem", {"mixtures": 5, "relative": False}),
    ],
    ids=["convolution", "spatial", "plain", "conv_values", "mixtures"],
)
def test_stem(x64: None, stem: str, options: dict[str, Any], train: bool) -> None:
    norm = {"group_size": 3, "decay": 0.7, "epsilon": 1e-3}
    build = getattr(nn, stem)
    compare(
        lambda: build(16, batch_norm=norm, rngs=nnx.Rngs(0), **options, **FLOAT64),
        getattr(torch_networks, stem)(16, **options, **norm),
        random_images(6, 12, 20, 3),
        train,
    )


def test_returned_attention(x64: None) -> None:
    """The weights that the network hands out are the softmax that it used."""
    options = SMALL | {"attention_groups": (1, 3), "window": 5, "blocks": (1, 1, 2, 1)}
    graphdef, shapes = split(
        nnx.eval_shape(
            lambda: sasa_jax.create_model("sa_resnet26", rngs=nnx.Rngs(0), **options, **FLOAT64)
        )
    )
    variables = random_variables(shapes, seed=3)
    images = random_images(1, 32, 64, 3)
    reference = torch_networks.ResNet(**options).eval()
    torch_reference.load_variables(reference, variables)
    reference(torch.from_numpy(images).permute(0, 3, 1, 2))
    (_, maps), _ = jax.jit(apply, static_argnums=0, static_argnames="return_attention")(
        graphdef, variables, images, return_attention=True
    )
    assert set(maps) == {"stem", "group1/block1", "group3/block1", "group3/block2"}
    for path, weights in maps.items():
        if path == "stem":
            # [B, N, 16, 16, L] with the blocks row by row.
            expected = reference.stem.weights.unflatten(-1, (8, 16)).permute(0, 4, 5, 1, 2, 3)
        else:
            layer = reference.get_submodule(path.replace("/", ".")).spatial
            expected = layer.weights.permute(0, 4, 5, 1, 2, 3)
        assert relative_error(weights, expected.detach()) <= TOLERANCE, path
