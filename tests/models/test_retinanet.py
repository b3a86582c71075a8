"""The detector's contract; equality with PyTorch is in tests/parity."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sasa_jax.detection import Anchors
from sasa_jax.models import (
    RetinaNet,
    apply,
    create_model,
    create_retinanet,
    retinanet_options,
    split,
)
from tests.ops.cases import FAST_COMPILE

BACKBONE = {
    "name": "sa_resnet26_conv_stem",
    "blocks": (1, 1, 1, 1),
    "attention_groups": (4,),
    "width": 0.125,
    "num_heads": 2,
    "window": 3,
    "zero_init_last_bn": False,
}
CONVOLUTION = BACKBONE | {"attention_groups": ()}
BOTH = {"fpn": "attention", "heads": "attention", "fpn_window": 3, "head_window": 5}
SIZE = (32, 160)  # P7 is 1x2: on one pixel BN would take gradients to exactly 0


def small(backbone: dict[str, Any] = BACKBONE, **options: Any) -> RetinaNet:
    options = dict(num_classes=3, features=16, tower_depth=1, num_heads=2) | options
    return create_retinanet(backbone, rngs=nnx.Rngs(0), **options)


def images(batch: int, size: tuple[int, int] = SIZE) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (batch, *size, 3))


def predict(model: RetinaNet, x: jax.Array, **options: Any) -> tuple:
    graphdef, variables = split(model)
    call = jax.jit(partial(apply, graphdef, **options), compiler_options=FAST_COMPILE)
    return call(variables, x)[0]


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("resnet50", {}, 33_416_308),
        ("resnet50", {"anchors_per_place": 9}, 34_066_318),
        ("resnet50", {"coarse_from": "c5"}, 37_545_076),
        ("sa_resnet50_conv_stem", {}, 25_874_780),
        ("sa_resnet50", {}, 25_866_828),
        ("sa_resnet50_conv_stem", {"heads": "attention"}, 21_969_436),
        ("sa_resnet50", {"heads": "attention"}, 21_961_484),
        ("sa_resnet50", {"heads": "attention", "fpn": "attention"}, 19_996_524),
    ],
)
def test_parameter_count(name, options, parameters):
    build = lambda: create_retinanet(  # noqa: E731
        {"name": name}, num_classes=90, rngs=nnx.Rngs(0), **options
    )
    _, shapes = split(nnx.eval_shape(build))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == parameters


@pytest.mark.parametrize("levels", [(2, 3, 4, 5, 6), (3, 4, 5, 6, 7), (4, 5, 6, 7, 8)])
@pytest.mark.parametrize("size", [(64, 96), (97, 66)])
def test_predictions_are_those_of_the_anchors(size, levels):
    groups = len(BACKBONE["blocks"]) + levels[0] - 3
    model = small(CONVOLUTION | {"blocks": (1,) * groups}, anchors_per_place=4)
    assert model.levels == levels
    logits, codes = jax.eval_shape(model, jax.ShapeDtypeStruct((2, *size, 3), jnp.float32))
    anchors = Anchors(scales=(1.0,), aspect_ratios=(1.0, 2.0, 3.0, 4.0), levels=levels)
    count = len(anchors.boxes(size))
    assert logits.shape == (2, count, 3) and codes.shape == (2, count, 4)
    assert logits.dtype == codes.dtype == jnp.float32


@pytest.mark.parametrize(
    "options",
    [
        {},
        BOTH | {"residual": True, "query_key_norm": "rms"},
        pytest.param({"heads": "attention", "coarse_from": "c5"}, marks=pytest.mark.slow),
    ],
    ids=["convolution", "attention", "attention in the heads"],
)
def test_gradients_and_batch_independence(options):
    graphdef, variables = split(small(**options))
    x = images(4)

    @partial(jax.jit, compiler_options=FAST_COMPILE)
    def gradients(params):
        def loss(params):
            (logits, codes), stats = apply(graphdef, dict(variables, params=params), x, train=True)
            return jnp.square(logits).sum() + jnp.square(codes + 1).sum(), stats

        return jax.grad(loss, has_aux=True)(params)

    gradient, stats = gradients(variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, f"{path} has no gradient"
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), stats, variables["batch_stats"])
    assert all(jax.tree.leaves(moved)), "training must record every layer's statistics"

    evaluate = jax.jit(lambda x: apply(graphdef, variables, x)[0], compiler_options=FAST_COMPILE)
    for both, other in zip(evaluate(x), evaluate(x.at[1:].set(0.0)), strict=True):
        np.testing.assert_allclose(both[0], other[0], rtol=1e-4, atol=1e-5)


def test_the_backbone_is_a_resnet_without_classifier():
    options = {key: value for key, value in BACKBONE.items() if key != "name"}
    resnet = create_model(BACKBONE["name"], rngs=nnx.Rngs(0), num_classes=5, **options)
    _, theirs = split(resnet)
    _, ours = split(small())
    del theirs["params"]["classifier"]
    for kind in ("params", "batch_stats"):
        assert jax.tree.map(jnp.shape, ours[kind]["backbone"]) == jax.tree.map(
            jnp.shape, theirs[kind]
        )
    with pytest.raises(ValueError, match="call `features`"):
        small().backbone(images(1))


def test_every_class_starts_with_the_prior():
    logits, codes = predict(small(prior=0.02), images(2))
    np.testing.assert_allclose(jax.nn.sigmoid(logits).mean(), 0.02, rtol=0.05)
    assert np.abs(codes).max() < 0.1


def test_levels_share_weights_and_have_norms_of_their_own():
    params = split(small(**BOTH))[1]["params"]
    assert set(params["class_head"]) == {"layer1", "bn1", "last", "output"}
    assert set(params["class_head"]["bn1"]) == {"p3", "p4", "p5", "p6", "p7"}
    assert params["class_head"]["output"]["kernel"].shape == (1, 1, 16, 6 * 3)
    convolution = split(small())[1]["params"]["box_head"]
    assert set(convolution) == {"layer1", "bn1", "output"}
    assert convolution["output"]["kernel"].shape == (3, 3, 16, 6 * 4)


def test_values_start_as_the_paper_says():
    for std, expected in ((0.01, 0.01), (None, 1 / 8)):
        params = split(small(**BOTH, features=64, value_init_std=std))[1]["params"]
        for layer in (params["fpn"]["p6"], params["class_head"]["layer1"]):
            np.testing.assert_allclose(layer["value"]["kernel"].std(), expected, rtol=0.05)


def test_attention_is_returned_when_asked_for():
    model = small(**BOTH)
    x = images(2)
    *outputs, attention = predict(model, x, return_attention=True)
    for ours, plain in zip(outputs, predict(model, x), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-6)
    sizes = {"p3": (4, 20), "p4": (2, 10), "p5": (1, 5), "p6": (1, 3), "p7": (1, 2)}
    before = sizes | {"p6": sizes["p5"], "p7": sizes["p6"]}  # attention comes before the pool
    expected = {"backbone/group4/block1": (2, 2, 10, 2, 3, 3)}
    expected |= {f"fpn/{level}": (2, *size, 2, 3, 3) for level, size in before.items()}
    expected |= {
        f"{head}/{layer}/{level}": (2, *size, 2, 5, 5)
        for head in ("class_head", "box_head")
        for layer in ("layer1", "last")
        for level, size in sizes.items()
    }
    assert {path: weights.shape for path, weights in attention.items()} == expected
    for weights in attention.values():
        total = weights.sum(axis=(-2, -1))
        np.testing.assert_allclose(total, np.ones(total.shape), rtol=1e-5)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
    half = small(BACKBONE | {"dtype": "bfloat16"}, **BOTH)
    single = small(**BOTH)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(split(half)[1]))
    x = images(2)
    for ours, exact in zip(predict(half, x), predict(single, x), strict=True):
        assert ours.dtype == jnp.float32
        assert not np.array_equal(ours, exact)
        # bfloat16 keeps 8 bits; a dozen layers of rounding stay well inside 5 % of the largest.
        assert np.abs(ours - exact).max() < 0.05 * np.abs(exact).max()


def test_the_backbones_batch_norm_is_the_detectors():
    model = small(BACKBONE | {"bn_group_size": 2, "bn_decay": 0.7, "bn_epsilon": 1e-3})
    for bn in (model.fpn.bn3, model.class_head.bn1["p7"], model.backbone.stem.bn):
        assert (bn.group_size, bn.decay, bn.epsilon) == (2, 0.7, 1e-3)


@pytest.mark.parametrize(
    ("backbone", "options", "error", "parts"),
    [
        ({}, {"fpn": "attn"}, ValueError, ["fpn", "'attn'", "'attention'"]),
        ({}, {"heads": "convolution"}, ValueError, ["heads", "'conv'"]),
        ({}, {"coarse_from": "p6"}, ValueError, ["coarse_from", "'p5'"]),
        ({}, BOTH | {"coarse_from": "c5"}, ValueError, ["coarse_from='p5'", "channels"]),
        ({}, {"tower_depth": 0}, ValueError, ["tower_depth"]),
        ({}, {"num_classes": 0}, ValueError, ["num_classes"]),
        ({}, {"prior": 0.0}, ValueError, ["prior"]),
        ({}, BOTH | {"num_heads": 3}, ValueError, ["num_heads 3", "16"]),
        ({}, BOTH | {"head_window": 4}, ValueError, ["window", "4", "odd"]),
        ({}, BOTH | {"query_key_norm": "rmsnorm"}, ValueError, ["query_key_norm", "'rms'"]),
        ({"blocks": (1, 1)}, {}, ValueError, ["three groups", "blocks"]),
        ({"num_classes": 5}, {}, ValueError, ["num_classes"]),
        ({"name": "resnet5"}, {}, ValueError, ["did you mean"]),
        ({}, {"head_widow": 3}, TypeError, ["did you mean 'head_window'"]),
        ({}, {"dtype": "bfloat16"}, TypeError, ["dtype", "backbone"]),
        ({"windwo": 3}, {}, TypeError, ["did you mean 'window'"]),
    ],
)
def test_bad_options_are_named(backbone, options, error, parts):
    with pytest.raises(error) as raised:
        nnx.eval_shape(lambda: small(CONVOLUTION | backbone, **options))
    for part in parts:
        assert part in str(raised.value)


def test_bad_images_and_a_nameless_backbone_are_named():
    with pytest.raises(ValueError, match="multiples of 32"):
        small()(images(1, (64, 80)))
    with pytest.raises(ValueError, match="'name'"):
        create_retinanet({"width": 0.5}, num_classes=3, rngs=nnx.Rngs(0))


def test_options_are_those_that_can_be_given():
    options = retinanet_options()
    assert options["head_window"] == 7 and options["heads"] == "conv"
    assert not {"num_classes", "anchors_per_place", "dtype", "rngs"} & set(options)
    small(**options | {"features": 16, "tower_depth": 1, "num_heads": 2})
