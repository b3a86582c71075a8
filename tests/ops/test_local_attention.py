"""What local attention must do, whatever computes it: limits, isolation, memory."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sasa_jax import local_attention, local_attention_weights
from sasa_jax.ops.local_attention import local_attention_packed, reads_packed
from sasa_jax.ops.local_attention.workloads import RESOLUTIONS, Workload

from .cases import FAST_COMPILE, attend_with, every, implementations

FAST = [name for name in implementations("float32") if name != "definition"]
fast = pytest.mark.parametrize("implementation", FAST)

# float32: a few roundings of 6e-8 on sums of order one, with logits of a few units.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def arguments(
    shape: tuple[int, int, int, int, int] = (2, 6, 9, 2, 4), window: int = 5
) -> dict[str, jax.Array]:
    """Images and shared tables."""
    half = shape[-1] // 2
    return {
        "query": normal(0, *shape),
        "key": normal(1, *shape),
        "value": normal(2, *shape),
        "row_embedding": normal(3, window, half),
        "column_embedding": normal(4, window, half),
    }


compile_fast = partial(jax.jit, compiler_options=FAST_COMPILE)
with_options = partial(compile_fast, static_argnames=("window", "boundary", "implementation"))


@with_options
def attend(inputs: dict[str, jax.Array], implementation: str | None = None, **options) -> jax.Array:
    return attend_with(implementation, **inputs, **options)


def gradients(
    inputs: dict[str, jax.Array],
    cotangent: jax.Array,
    implementation: str | None = None,
    **options,
) -> dict:
    """Output and gradients."""
    output, transpose = jax.vjp(
        lambda inputs: attend_with(implementation, **inputs, **options), inputs
    )
    return {"output": output, **transpose(cotangent)[0]}


run = with_options(gradients)


@every
def test_window_of_one_returns_the_values(implementation: str) -> None:
    inputs = arguments(window=1)
    output = attend(inputs, window=1, implementation=implementation)
    np.testing.assert_allclose(output, inputs["value"], rtol=1e-6)


@every
def test_window_over_the_map_is_global_attention(implementation: str) -> None:
    inputs = arguments((2, 3, 4, 2, 4), window=7)
    del inputs["row_embedding"], inputs["column_embedding"]
    output = attend(inputs, window=7, boundary="mask", implementation=implementation)
    query, key, value = (inputs[x].reshape(2, 12, 2, 4) for x in ("query", "key", "value"))
    weights = jax.nn.softmax(jnp.einsum("bqnd,bknd->bnqk", query, key), axis=-1)
    expected = jnp.einsum("bnqk,bknd->bqnd", weights, value).reshape(output.shape)
    np.testing.assert_allclose(output, expected, **CLOSE)


@every
def test_zero_query_and_embeddings_give_the_mean(implementation: str) -> None:
    inputs = arguments(window=3)
    for name in ("query", "row_embedding", "column_embedding"):
        inputs[name] = jnp.zeros_like(inputs[name])
    height, width = inputs["value"].shape[1:3]

    def total(image: jax.Array) -> jax.Array:
        padded = jnp.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0)))
        return sum(padded[:, r : r + height, c : c + width] for r in range(3) for c in range(3))

    sums, counts = total(inputs["value"]), total(jnp.ones_like(inputs["value"]))
    for boundary, mean in (("zero", sums / 9), ("mask", sums / counts)):
        output = attend(inputs, window=3, boundary=boundary, implementation=implementation)
        np.testing.assert_allclose(output, mean, **CLOSE)


@every
def test_shifting_the_image_shifts_the_interior(implementation: str) -> None:
    inputs = arguments((1, 12, 12, 2, 4))
    options = {"window": 5, "implementation": implementation}
    output = attend(inputs, **options)
    images = {x: jnp.roll(inputs[x], (1, 3), axis=(1, 2)) for x in ("query", "key", "value")}
    moved = jnp.roll(attend(inputs | images, **options), (-1, -3), axis=(1, 2))
    # Pixels whose window meets no border, before and after the shift.
    np.testing.assert_allclose(moved[:, 2:-3, 2:-5], output[:, 2:-3, 2:-5], **CLOSE)


@every
@pytest.mark.parametrize("boundary", ["zero", "mask"])
def test_outside_the_window_nothing_counts(boundary: str, implementation: str) -> None:
    """Numbers of 1e20 beyond a query's window change nothing, bit for bit.

    They are finite: forms that multiply whole tiles give such keys the weight 0, and 0 * inf would
    be NaN. Keys of that size drive the logits to +-inf where they are not cut off.
    """
    inputs = arguments((1, 9, 11, 2, 4))
    row, column = 4, 6
    window = np.zeros((1, 9, 11, 1, 1), bool)
    window[:, row - 2 : row + 3, column - 2 : column + 3] = True
    poisoned = {x: jnp.where(window, inputs[x], 1e20) for x in ("key", "value")}
    cotangent = jnp.zeros_like(inputs["query"]).at[:, row, column].set(1.0)
    options = {"window": 5, "boundary": boundary, "implementation": implementation}
    clean = run(inputs, cotangent, **options)
    dirty = run(inputs | poisoned, cotangent, **options)
    for found in (clean, dirty):  # other pixels' outputs may differ, their gradients not
        found["output"] = found["output"][:, row, column]
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)


@every
@pytest.mark.parametrize("boundary", ["zero", "mask"])
def test_other_images_never_leak(boundary: str, implementation: str) -> None:
    """Ragged tiles, and NaN in the neighbouring images: padding must not reach them."""
    own = np.zeros((3, 5, 6, 3, 4), bool)
    own[1] = True
    assert_isolated(own, np.nan, boundary, implementation)


@every
def test_other_heads_never_leak(implementation: str) -> None:
    """NaN in the other heads; finite where heads share a product with zeros: 0 * NaN is NaN."""
    own = np.zeros((2, 5, 6, 3, 4), bool)
    own[:, :, :, 1] = True
    poison = 1e3 if implementation.startswith("tpu_matrix") else np.nan
    assert_isolated(own, poison, "mask", implementation)


def assert_isolated(own: np.ndarray, poison: float, boundary: str, implementation: str) -> None:
    """Poison outside `own`, whole images or heads, changes nothing inside, bit for bit."""
    inputs = arguments(own.shape, window=7)
    poisoned = {x: jnp.where(own, inputs[x], poison) for x in ("query", "key", "value")}
    options = {"window": 7, "boundary": boundary, "implementation": implementation}
    cotangent = normal(5, *own.shape)
    clean = run(inputs, cotangent, **options)
    dirty = run(inputs | poisoned, cotangent, **options)
    for name in ("output", "query", "key", "value"):
        np.testing.assert_array_equal(dirty[name][own], clean[name][own])


@pytest.mark.parametrize("boundary", ["zero", "mask"])
def test_weights(boundary: str) -> None:
    """Weights sum to 1, give the output, and hold exactly 0 on padding with "mask" only."""
    inputs = arguments((2, 4, 6, 3, 4), window=5)
    value = inputs.pop("value")
    weigh = compile_fast(partial(local_attention_weights, window=5, boundary=boundary))
    weights = weigh(**inputs)
    assert weights.shape == (2, 4, 6, 3, 5, 5)
    np.testing.assert_allclose(weights.sum(axis=(-2, -1)), 1.0, rtol=1e-6)
    weights, value = np.asarray(weights), np.asarray(value)
    output = np.zeros(value.shape)
    outside = np.ones((4, 6, 5, 5), bool)
    for i, j, r, c in np.ndindex(4, 6, 5, 5):
        a, b = i + r - 2, j + c - 2
        if 0 <= a < 4 and 0 <= b < 6:
            output[:, i, j] += weights[:, i, j, :, r, c, None] * value[:, a, b]
            outside[i, j, r, c] = False
    expected = attend({**inputs, "value": value}, window=5, boundary=boundary)
    np.testing.assert_allclose(output, expected, **CLOSE)
    on_padding = weights.transpose(1, 2, 4, 5, 0, 3)[outside]
    assert (on_padding == 0).all() if boundary == "mask" else (on_padding > 0).all()


@every
def test_two_runs_are_equal_to_the_bit(implementation: str) -> None:
    inputs = arguments()
    run = jax.jit(partial(gradients, window=5, implementation=implementation))  # optimised
    first, second = run(inputs, inputs["value"]), run(inputs, inputs["value"])
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("implementation", ["definition", "dense", "rows"])
@pytest.mark.parametrize("dtype, exact", [("float32", True), ("bfloat16", False)])
def test_float32_is_multiplied_as_such(implementation: str, dtype: str, exact: bool) -> None:
    """On accelerators too, whose default is less: every product asks for it, those of gradients
    included."""
    inputs = {name: x.astype(dtype) for name, x in arguments().items()}
    run = partial(gradients, window=5, implementation=implementation)
    products = str(jax.make_jaxpr(run)(inputs, inputs["value"])).split("dot_general[")[1:]
    assert len(products) >= 3
    assert all(("HIGHEST" in product[:300]) == exact for product in products)


def test_one_array_is_taken_apart_where_it_is_not_read_in_place() -> None:
    inputs = arguments()
    images = [inputs.pop(name) for name in ("query", "key", "value")]
    options = {"window": 5, "implementation": "rows"}

    def run(attend: Callable, images: tuple) -> tuple:
        output, transpose = jax.vjp(partial(attend, **inputs, **options), *images)
        return output, transpose(jnp.ones_like(output))

    assert not reads_packed(images[0].shape, images[0].dtype, **options)
    expected, gradients = run(local_attention, images)
    output, (gradient,) = run(local_attention_packed, [jnp.stack(images, axis=3)])
    np.testing.assert_array_equal(output, expected)
    np.testing.assert_array_equal(gradient, jnp.stack(gradients, axis=3))


@every
def test_vmap_and_jit(implementation: str) -> None:
    inputs = arguments()
    expected = attend(inputs, window=5, implementation=implementation)

    def one(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        images = {"query": query[None], "key": key[None], "value": value[None]}
        return attend_with(implementation, **inputs | images, window=5)[0]

    output = compile_fast(jax.vmap(one))(inputs["query"], inputs["key"], inputs["value"])
    np.testing.assert_allclose(output, expected, **CLOSE)


@fast
def test_no_forward_mode(implementation: str) -> None:
    inputs = arguments()
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(
            lambda x: attend_with(implementation, **inputs | {"query": x}, window=5),
            (inputs["query"],),
            (inputs["query"],),
        )


@pytest.mark.parametrize("workload", RESOLUTIONS, ids=lambda workload: workload.name)
def test_backward_needs_a_tenth_of_the_memory(workload: Workload) -> None:
    """Temporary bytes of the compiled gradient at ResNet-50's shapes; nothing is run."""
    image = jax.ShapeDtypeStruct(workload.shape(batch=8), jnp.float32)
    half = workload.channels // workload.heads // 2
    table = jax.ShapeDtypeStruct((workload.window, half), jnp.float32)
    inputs = {"query": image, "key": image, "value": image}
    inputs |= {"row_embedding": table, "column_embedding": table}

    def temporary_bytes(implementation: str | None) -> int:
        run = jax.jit(partial(gradients, implementation=implementation))
        return run.lower(inputs, image).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(None) <= temporary_bytes("definition") / 10
    assert temporary_bytes("rows") <= temporary_bytes("definition") / 10
