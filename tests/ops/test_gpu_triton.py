"""What is special to the GPU kernel: the sizes it is written for, races, padding, determinism.

The operator's own suite runs it too, under the name gpu_triton. Both run on a GPU, and elsewhere in
Triton's interpreter, which conftest.py turns on: bfloat16 is float32 there but for the results.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sasa_jax import local_attention
from sasa_jax.nn import LocalSelfAttention
from sasa_jax.ops.local_attention.checks import checked_options
from sasa_jax.ops.local_attention.contract import Problem
from sasa_jax.ops.local_attention.gpu_triton import refuses
from sasa_jax.ops.local_attention.registry import picked

from .cases import Case, implementations
from .test_local_attention_cases import assert_close, value_and_gradients

here = pytest.mark.skipif(
    "gpu_triton" not in implementations("float32"),
    reason="no GPU and no Triton with PyTorch for its interpreter: make test-gpu",
)


def case(height: int, width: int, heads: int, dim: int, window: int, **changes) -> Case:
    options = dict(batch=1, boundary="zero", scale=None, per_head=False, content=True, seed=7)
    options |= dict(embeddings=True)
    return Case(
        height=height, width=width, heads=heads, dim=dim, window=window, **options | changes
    )


@here
@pytest.mark.parametrize(
    "dim, dtype",
    [
        (8, "float16"),
        (8, "bfloat16"),
        (16, "float32"),
        (32, "float16"),
        (64, "float32"),
        (64, "bfloat16"),
    ],
)
def test_head_dimensions(dim: int, dtype: str) -> None:
    """Ragged tiles: 3 rows for tiles of 2, 9 columns for tiles of 8. Logits stay of size 1."""
    assert_close(case(3, 9, 2, dim, 7, scale=dim**-0.5), "gpu_triton", dtype)


@here
@pytest.mark.parametrize("window, boundary", [(9, "mask"), (11, "zero"), (15, "mask")])
def test_large_windows(window: int, boundary: str) -> None:
    """Halos of several chunks in each kernel; the suite has the other windows."""
    assert_close(case(3, 17, 1, 8, window, boundary=boundary), "gpu_triton", "float32")


@here
def test_dimensions_between() -> None:
    """40 numbers are read as 64 of which 24 count for nothing."""
    assert_close(case(3, 4, 3, 40, 5, per_head=True, scale=0.2), "gpu_triton", "float32")


@here
@pytest.mark.parametrize("heads", [3, 4])
def test_heads_of_one_program(heads: int) -> None:
    """bfloat16 heads of 8 are taken in twos where their number is even; of 2, in eights."""
    assert_close(case(3, 9, heads, 8, 3, scale=0.5), "gpu_triton", "bfloat16")
    assert_close(case(3, 9, 8, 2, 3, per_head=True), "gpu_triton", "bfloat16")


@here
@pytest.mark.parametrize("boundary", ["zero", "mask"])
def test_huge_logits_stay_finite(boundary: str) -> None:
    """Logits of 1e8 and more, whose rounding alone is thousands: weights are still 0 to 1."""
    keys = jax.random.split(jax.random.key(0), 3)
    query, key, value = (1e4 * jax.random.normal(k, (1, 3, 9, 1, 8)) for k in keys)
    table = jnp.full((7, 4), 1e4)

    def attend(*inputs: jax.Array) -> jax.Array:
        return local_attention(*inputs, boundary=boundary, implementation="gpu_triton")

    output, transpose = jax.vjp(attend, query, key, value, table, table)
    for x in (output, *transpose(jnp.ones_like(output))):
        assert jnp.isfinite(x).all()


@here
@pytest.mark.parametrize(
    "options, products",
    [
        ({}, 3),
        ({"position": "sinusoidal", "per_head_embeddings": True}, 3),
        ({"content": False}, 6),
        ({"query_key_norm": "rms"}, 9),
        ({"grouped_projections": True}, 9),
    ],
)
def test_the_layer_projects_once_where_it_can(options: dict, products: int) -> None:
    """One product forward and two backward, or as many for each projection; the same numbers."""
    keys = jax.random.split(jax.random.key(2))
    x, cotangent = (jax.random.normal(key, (1, 3, 9, 16)) for key in keys)

    def run(implementation: str) -> tuple:
        layer = LocalSelfAttention(
            16, num_heads=2, implementation=implementation, rngs=nnx.Rngs(0), **options
        )
        graph, params = nnx.split(layer)

        def apply(params: nnx.State, x: jax.Array) -> jax.Array:
            return nnx.merge(graph, params, copy=True)(x)

        def both(params: nnx.State, x: jax.Array) -> tuple:
            output, transpose = jax.vjp(apply, params, x)
            return output, transpose(cotangent)

        program = jax.jit(both).trace(params, x)
        return str(program.jaxpr).count("dot_general"), jax.jit(both)(params, x)

    counted, found = run("gpu_triton")
    assert counted == products
    compare = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(compare, found, run("rows")[1])


@here
def test_many_runs_are_equal_to_the_bit() -> None:
    """On a GPU programs run in another order each time: a race would show."""
    runs = 50 if jax.default_backend() == "gpu" else 1
    ragged = case(3, 9, 2, 8, 7)
    for name in ("gpu_triton", "gpu_triton_packed"):
        first = value_and_gradients(ragged, name, "bfloat16", "bfloat16")
        for _ in range(runs):
            again = value_and_gradients(ragged, name, "bfloat16", "bfloat16")
            jax.tree.map(np.testing.assert_array_equal, again, first)


@here
def test_poisoned_images_around_a_ragged_one() -> None:
    """NaN before and after an image in memory: what is read beyond its border would show."""
    keys = jax.random.split(jax.random.key(1), 4)
    images = [jax.random.normal(k, (3, 3, 9, 1, 8)) for k in keys]
    poisoned = [x.at[jnp.array([0, 2])].set(jnp.nan) for x in images]

    def run(query, key, value, cotangent) -> tuple:
        output, transpose = jax.vjp(
            lambda *x: local_attention(*x, implementation="gpu_triton"),
            query,
            key,
            value,
        )
        return output, *transpose(cotangent)

    for expected, found in zip(run(*images), run(*poisoned), strict=True):
        np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("scale", [0.0, -1.0, 1e7])
def test_scales_that_are_refused(scale: float) -> None:
    problem = Problem(
        "gpu", jnp.dtype("float32"), (1, 8, 8, 2, 8), checked_options(7, "zero", scale)
    )
    assert "it takes 1e-06 to 1e+06" in refuses(problem)


@pytest.mark.parametrize(
    "dtype, shape, window, reason",
    [
        ("float64", (1, 8, 8, 2, 8), 7, "dtype float64; it takes float32, bfloat16, float16"),
        ("float32", (1, 8, 8, 2, 128), 7, "head dimension 128; it takes up to 64"),
        ("float32", (1, 8, 8, 2, 8), 17, "window 17; it takes up to 15"),
        ("float32", (1, 1 << 12, 1 << 12, 2, 64), 7, "it takes fewer than 2"),
    ],
)
def test_what_is_refused(dtype: str, shape: tuple[int, ...], window: int, reason: str) -> None:
    problem = Problem("gpu", jnp.dtype(dtype), shape, checked_options(window, "zero", None))
    assert reason in refuses(problem)


def test_without_triton_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    problem = Problem(
        "gpu", jnp.dtype("float32"), (1, 8, 8, 2, 8), checked_options(7, "zero", None)
    )
    assert "pip install 'sasa_jax[gpu]'" in refuses(problem)


@pytest.mark.parametrize("height, heads_of", [(56, 8), (7, 64)])
def test_it_is_taken_on_a_gpu_alone(
    height: int, heads_of: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, options = (4, height, height, 8, heads_of), checked_options(7, "zero", None)
    assert picked(Problem("cpu", jnp.dtype("float32"), shape, options)) != "gpu_triton"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert picked(Problem("gpu", jnp.dtype("bfloat16"), shape, options)) == "gpu_triton"
