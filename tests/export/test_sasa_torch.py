"""The PyTorch module against the networks in JAX, both in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch", reason="the module is PyTorch's")
pytest.importorskip("safetensors", reason="the module reads safetensors")

import sasa_jax  # noqa: E402
from sasa_jax.export import as_torch, sasa_torch  # noqa: E402
from sasa_jax.export.serving import Network  # noqa: E402
from sasa_jax.models import apply, split  # noqa: E402
from sasa_jax.models.pretrained import to_torch  # noqa: E402
from tests.ops.cases import FAST_COMPILE  # noqa: E402
from tests.parity.common import random_variables, relative_error  # noqa: E402

SMALL = {
    "num_classes": 5,
    "blocks": (1, 1, 1),
    "attention_groups": (1, 2, 3),
    "width": 0.125,
    "num_heads": 2,
}

# Options that do not touch one another share a network: each costs seconds to compile.
NETWORKS = {
    "paper": {"blocks": (1, 2), "attention_groups": (1, 2)},
    "plain values, no position, masked": {
        "stem_values": "plain",
        "position": "none",
        "boundary": "mask",
        "query_key_norm": "rms",
    },
    "conv values, no content, per head": {
        "stem_values": "conv",
        "content": False,
        "per_head_embeddings": True,
        "window": (11, 5, 3),
    },
    "mixtures, sinusoidal, grouped": {
        "stem_mixtures": 3,
        "stem_heads": 2,
        "stem_relative": False,
        "position": "sinusoidal",
        "grouped_projections": True,
        "logit_scale": "inverse_sqrt",
        "bn_epsilon": 1e-3,
    },
    "conv stem, second group convolutions, masked": {
        "stem": "conv",
        "boundary": "mask",
        "blocks": (1, 2, 1),
        "num_heads": 4,
        "attention_groups": (1, 3),
        "window": 5,
    },
}


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_parity(x64, options):
    """80x112 images: the groups' maps are 20x28, 10x14 and 5x7, which tiles do not divide."""
    options = SMALL | options
    float64 = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    graphdef, shapes = split(
        nnx.eval_shape(
            lambda: sasa_jax.create_model("sa_resnet26", rngs=nnx.Rngs(0), **options, **float64)
        )
    )
    variables = random_variables(shapes, seed=1)
    images = np.random.default_rng(0).normal(size=(2, 80, 112, 3))
    forward = jax.jit(lambda v, x: apply(graphdef, v, x)[0], compiler_options=FAST_COMPILE)

    model = {"name": "sa_resnet26", **options}
    network = Network({"model": model, "task": "classification"}, tuple("abcde"), 1, variables)
    theirs = sasa_torch.ResNet(**as_torch.torch_options(network)).double().eval()
    # Float64 again: what is exported is float32.
    exact = {name: torch.from_numpy(x).double() for name, x in to_torch(variables).items()}
    theirs.load_state_dict(exact)
    rounded = jax.tree.map(lambda x: np.float64(np.float32(x)), variables)
    logits = theirs(torch.from_numpy(images).permute(0, 3, 1, 2)).detach()
    assert relative_error(forward(rounded, images), logits) < 1e-8


def test_gradients_are_finite_where_padding_is_masked():
    """Tiles reach beyond the map: what their padding attends to must not spread."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 4, 9, 11, requires_grad=True) for _ in range(3))
    y = sasa_torch.local_attention(query, key, value, None, None, window=3, boundary="mask")
    y.square().sum().backward()
    for x in (query, key, value):
        assert x.grad.isfinite().all() and x.grad.abs().max() > 1e-3


def test_load(classifier, tmp_path):
    as_torch.write(Network.of(classifier), tmp_path)
    model = sasa_torch.load(tmp_path)
    assert not model.training and model.class_names == classifier.class_names
    assert model.preprocessing["resize"] == "the whole image to S x S, its aspect not kept"
    black = model.normalise(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))
    np.testing.assert_allclose(black[0, :, 0, 0], [-2.1179, -2.0357, -1.8044], atol=1e-4)
