"""The attention stem's TPU form, in Pallas' interpreter, against the stem as it is written."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from sasa_jax.nn import AttentionStem
from sasa_jax.ops.block_attention import tpu

from .cases import FAST_COMPILE

FEATURES, IMAGES = 16, (4, 8, 12)


def make_stem(implementation: str | None, dtype: str = "float32", **options) -> AttentionStem:
    """Scales of either sign, and running averages that are not those of the images."""
    options = {"features": FEATURES, "num_heads": 2, "batch_norm": {}} | options
    stem = AttentionStem(
        **options, dtype=jnp.dtype(dtype), implementation=implementation, rngs=nnx.Rngs(0)
    )
    random = np.random.default_rng(1)
    features = stem.bn.scale[...].shape
    stem.bn.scale[...] = jnp.asarray(random.choice([-1, 1], features), jnp.float32)
    stem.bn.bias[...] = jnp.asarray(random.normal(size=features), jnp.float32)
    stem.bn.mean[...] = jnp.asarray(random.normal(size=features) / 4, jnp.float32)
    return stem


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def program(stem: AttentionStem, *, train: bool = True):
    """A compiled function of (parameters, images): output, all gradients, running averages."""
    graph, params, rest = nnx.split(stem, nnx.Param, ...)

    @partial(jax.jit, compiler_options=FAST_COMPILE)
    def run(params: nnx.State, images: jax.Array) -> dict:
        def call(params: nnx.State, images: jax.Array):
            model = nnx.merge(graph, params, rest, copy=True)
            return model(images, train=train), nnx.state(model, nnx.BatchStat)

        output, transpose, averages = jax.vjp(call, params, images, has_aux=True)
        cotangent = normal(*output.shape, seed=2).astype(output.dtype)
        parameters, images = transpose(cotangent)
        return {"output": output, "params": parameters, "images": images, "averages": averages}

    return run, params


def run(stem: AttentionStem, images: jax.Array, **options) -> dict:
    function, params = program(stem, **options)
    return function(params, images)


def assert_close(got: dict, expected: dict, tolerance: float) -> None:
    """Relative to the largest entry of each array."""

    def compare(path, x, y) -> None:
        scale = max(float(jnp.abs(y).max()), 1.0)
        np.testing.assert_allclose(
            x / scale, y / scale, rtol=0, atol=tolerance, err_msg=jax.tree_util.keystr(path)
        )

    jax.tree_util.tree_map_with_path(compare, got, expected)


def test_padding_of_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """280 blocks: three tiles in two grid steps of two, the third ragged, the fourth empty; three
    heads of six dims. 2e-5: sums of up to 4480 products in another order, each rounded to 6e-8."""
    monkeypatch.setattr(tpu, "TILES", 2)
    options = {"features": 18, "num_heads": 3, "mixtures": 2}
    images = normal(1, 80, 56, 3)
    expected = run(make_stem("definition", **options), images)
    function, params = program(make_stem("tpu_blocks", **options))
    found = function(params, images)
    assert_close(found, expected, 2e-5)
    jax.tree.map(np.testing.assert_array_equal, found, function(params, images))


def test_bfloat16_is_as_close_to_float32_as_the_definition() -> None:
    """Of either form the error is that of 2^-9 roundings, but the winner of a near tie may differ.
    So what is compared is the error of whole arrays: 1.5 times the definition's, and a rounding.
    The ReLU is kept out of it: its gradient jumps."""

    def in_dtype(implementation: str, dtype: str) -> dict:
        stem = make_stem(implementation, dtype)
        stem.bn.bias[...] = jnp.full_like(stem.bn.bias[...], 8.0)
        return run(stem, images)

    images = normal(8, 16, 16, 3).astype(jnp.bfloat16).astype(jnp.float32)
    exact = in_dtype("definition", "float32")
    found = in_dtype("tpu_blocks", "bfloat16")
    definition = in_dtype("definition", "bfloat16")

    def compare(path, x, y, z) -> None:
        x, y, z = (np.asarray(a, np.float32) for a in (x, y, z))
        norm = np.linalg.norm(z)
        error, allowed = np.linalg.norm(x - z), np.linalg.norm(y - z)
        name = jax.tree_util.keystr(path)
        assert error <= 1.5 * allowed + 2.0**-8 * norm, f"{name}: {error / norm:.1e}"

    jax.tree_util.tree_map_with_path(compare, found, definition, exact)


def test_of_equal_pixels_the_first_wins() -> None:
    """The lower half of every block repeats the upper, so all outputs come in pairs. Besides, one
    head, plain values, no relative term, running averages."""
    half = normal(4, 2, 2, 12, 3, seed=3)
    images = jnp.concatenate([half, half], axis=2).reshape(*IMAGES, 3)
    options = {"values": "plain", "relative": False, "num_heads": 1}
    expected = run(make_stem("definition", **options), images, train=False)
    found = run(make_stem("tpu_blocks", **options), images, train=False)
    assert_close(found, expected, 2e-5)


@pytest.mark.slow  # this interpreter looks at every access to memory
def test_what_is_not_initialised_is_not_used() -> None:
    """130 blocks in two tiles; fresh memory is NaN."""
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = {"content": (2, 3, 3), "relative": (2, 3, 16, 16), "values": (16, 3, 2, 8)}
    operands = {
        name: jax.random.normal(k, shapes[name]) for name, k in zip(shapes, keys, strict=False)
    }
    blocks = jax.random.normal(keys[3], (1, 48, 130))
    centre = jax.random.normal(keys[4], (2, 8))

    def both(interpret):
        @jax.jit
        def gradients(blocks, centre, operands):
            def call(blocks, centre, operands):
                return tpu.best_and_sums(blocks, **operands, centre=centre, interpret=interpret)

            output, transpose = jax.vjp(call, blocks, centre, operands)
            return output, transpose(output)

        return jax.tree.leaves(gradients(blocks, centre, operands))

    poisoned = pltpu.InterpretParams(uninitialized_memory="nan")
    for x, y in zip(both(poisoned), both(True), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * np.abs(y).max())


@pytest.mark.parametrize("group_size", [None, 2])
def test_two_devices_take_their_own_images(group_size: int | None) -> None:
    stem = make_stem("tpu_blocks", batch_norm={"group_size": group_size})
    images = normal(*IMAGES, 3)
    expected = run(make_stem("definition", batch_norm={"group_size": group_size}), images)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        function, params = program(stem)
        params = jax.device_put(params, NamedSharding(mesh, P()))
        images = jax.device_put(images, NamedSharding(mesh, P("data")))
        step = function.lower(params, images).compile()
        assert_close(step(params, images), expected, 2e-5)
    text = step.as_text()
    assert "all-reduce" in text
    assert not [op for op in ("all-gather", "all-to-all", "collective-permute") if op in text]


def test_off_tpu_the_definition_is_taken() -> None:
    stem = make_stem(None)
    assert "pallas_call" not in str(jax.make_jaxpr(partial(stem, train=False))(normal(*IMAGES, 3)))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"values": "conv"}, 'spatial" and "plain", not "conv"'),
        ({"dtype": "float16"}, "float32 and bfloat16, not float16"),
        ({"features": 34, "num_heads": 17}, "up to 16 heads and 512 features, not 17 and 34"),
    ],
)
def test_what_it_cannot_do_is_refused(options: dict, message: str) -> None:
    stem = make_stem("tpu_blocks", **options)
    with pytest.raises(NotImplementedError, match=message):
        stem(normal(*IMAGES, 3), train=False)


def test_an_unknown_implementation_is_refused() -> None:
    with pytest.raises(ValueError, match="tpu_blocks"):
        make_stem("tpu_block")
