"""Every registered model keeps the same contract."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sasa_jax
from sasa_jax.models import apply, model_options, split

PARAMETERS = {
    "resnet26": 13_696_552,
    "resnet38": 19_626_792,
    "resnet50": 25_557_032,
    "sa_resnet26_conv_stem": 10_331_264,
    "sa_resnet38_conv_stem": 14_173_384,
    "sa_resnet50_conv_stem": 18_015_504,
    "sa_resnet26": 10_323_200 + 112,
    "sa_resnet38": 14_165_320 + 112,
    "sa_resnet50": 18_007_440 + 112,  # 112: the relative term in the stem's logits
}


def small(name: str, **overrides) -> nnx.Module:
    return sasa_jax.create_model(
        name, rngs=nnx.Rngs(0), width=0.25, num_classes=5, zero_init_last_bn=False, **overrides
    )


def images(batch: int, size: int = 32) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (batch, size, size, 3))


def test_every_model_is_listed_and_counted():
    assert set(sasa_jax.list_models()) == set(PARAMETERS)


@pytest.mark.parametrize("name", sasa_jax.list_models())
def test_parameter_count_and_logits_shape(name):
    def run(images):
        model = sasa_jax.create_model(name, rngs=nnx.Rngs(0))
        _, variables = split(model)
        return variables["params"], model(images)

    params, logits = jax.eval_shape(run, jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == PARAMETERS[name]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    assert logits.shape == (2, 1000) and logits.dtype == jnp.float32


VARIANTS = ("resnet26", "sa_resnet26_conv_stem", "sa_resnet26")


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, dict(blocks=(1, 1, 1, 1))) for name in VARIANTS]
    + [pytest.param(name, {}, marks=pytest.mark.slow) for name in sasa_jax.list_models()],
)
def test_gradients_and_batch_independence(name, options):
    graphdef, variables = split(small(name, **options))
    x = images(4)

    @jax.jit
    def gradients(params):
        def loss(params):
            logits, stats = apply(graphdef, dict(variables, params=params), x, train=True)
            return jnp.square(logits).sum(), stats

        return jax.grad(loss, has_aux=True)(params)

    gradient, stats = gradients(variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, f"{path} has no gradient"
    assert jax.tree.structure(stats) == jax.tree.structure(variables["batch_stats"])
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), stats, variables["batch_stats"])
    assert all(jax.tree.leaves(moved)), "training must record every layer's statistics"

    evaluate = jax.jit(lambda x: apply(graphdef, variables, x)[0])
    both = evaluate(x)
    other = evaluate(x.at[1:].set(0.0))
    np.testing.assert_allclose(both[0], other[0], rtol=1e-4, atol=1e-5)


def test_evaluation_leaves_statistics_alone():
    graphdef, variables = split(small("sa_resnet26", blocks=(1,), attention_groups=(1,)))
    _, stats = apply(graphdef, variables, images(2))
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])


def test_attention_is_returned_when_asked_for():
    model = small("sa_resnet26", blocks=(1, 2), attention_groups=(2,), window=(7, 5))
    x = images(2)
    logits, attention = model(x, return_attention=True)
    np.testing.assert_allclose(logits, model(x), rtol=1e-5, atol=1e-6)
    assert {path: weights.shape for path, weights in attention.items()} == {
        "stem": (2, 8, 8, 4, 16, 16),
        "group2/block1": (2, 8, 8, 8, 5, 5),
        "group2/block2": (2, 4, 4, 8, 5, 5),
    }
    for path, weights in attention.items():
        total = weights.sum(axis=-1 if path == "stem" else (-2, -1))
        np.testing.assert_allclose(total, np.ones(total.shape), rtol=1e-5)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
    options = dict(blocks=(1, 1), attention_groups=(1, 2))
    half = small("sa_resnet26", dtype="bfloat16", **options)
    single = small("sa_resnet26", **options)
    _, variables = split(half)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    x = images(2)
    logits = half(x)
    assert logits.dtype == jnp.float32
    # bfloat16 keeps 8 bits; a dozen layers of rounding stay well inside 5 % of the largest logit.
    assert np.abs(logits - single(x)).max() < 0.05 * np.abs(single(x)).max()
    assert not np.array_equal(logits, single(x))


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (dict(stem="attn"), ["stem", "'attn'", "'attention'"]),
        (dict(stem_values="spatialy"), ["stem_values", "did you mean 'spatial'"]),
        (dict(position="relativ"), ["position", "did you mean 'relative'"]),
        (dict(logit_scale="sqrt"), ["logit_scale", "'inverse_sqrt'"]),
        (dict(window=(7, 7)), ["window", "4 groups"]),
        (dict(window=6), ["window", "6", "odd"]),
        (dict(attention_groups=(5,)), ["attention_groups", "from 1 to 4"]),
        (dict(width=0.3), ["width 0.3", "integer"]),
        (dict(width=0.125), ["even", "relative"]),
        (dict(num_heads=3), ["num_heads 3", "64"]),
        (dict(stem_heads=3), ["stem_heads 3"]),
        (dict(stem_mixtures=0), ["stem_mixtures"]),
        (dict(content=False, position="none"), ["content=False", "position"]),
        (dict(bn_group_size=0), ["bn_group_size"]),
    ],
)
def test_bad_options_are_named(options, parts):
    with pytest.raises(ValueError) as error:
        nnx.eval_shape(lambda: sasa_jax.create_model("sa_resnet26", rngs=nnx.Rngs(0), **options))
    for part in parts:
        assert part in str(error.value)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'sa_resnet50'"):
        sasa_jax.create_model("sa_resnet500", rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="did you mean 'window'"):
        sasa_jax.create_model("sa_resnet50", rngs=nnx.Rngs(0), windwo=5)
    with pytest.raises(ValueError, match="did you mean"):
        model_options("resnet5")


@pytest.mark.parametrize(
    ("shape", "part"),
    [((2, 32, 32), r"\[B, H, W, 3\]"), ((2, 32, 32, 1), "3"), ((2, 32, 36, 3), "multiples of 32")],
)
def test_bad_images_are_named(shape, part):
    def run(images):
        return sasa_jax.create_model("sa_resnet26", rngs=nnx.Rngs(0))(images)

    with pytest.raises(ValueError, match=part):
        jax.eval_shape(run, jax.ShapeDtypeStruct(shape, jnp.float32))


def test_a_convolutional_network_takes_any_size():
    def run(images):
        return sasa_jax.create_model("resnet26", rngs=nnx.Rngs(0))(images)

    assert jax.eval_shape(run, jax.ShapeDtypeStruct((1, 97, 65, 3), jnp.float32)).shape == (1, 1000)
