"""Every implementation against the definition's float64 autodiff, over random cases.

Tolerances, relative to the largest entry of the array compared:
- float64, 1e-11: sums of at most 13 * 13 products, each rounded to 1e-16, amplified by logits of
  up to about 30, whose absolute rounding error is the weights' relative error.
- float32, 2e-5: the same with a rounding of 6e-8.
- bfloat16 and float16: the inputs are rounded before both computations, so only arithmetic counts.
  It is float32 inside; what is left is the result's own rounding (2^-9 and 2^-12) and, in kernels
  that multiply on a matrix unit, that of the weights and of their gradients: 4 roundings' worth.
Below float64 errors are absolute for arrays with no entry above 1, the size of the inputs: a
gradient that is a sum of terms of order one may itself be small.
"""

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from .cases import (
    FAST_COMPILE,
    PACKED,
    Case,
    attend_with,
    implementations,
    make_inputs,
    random_cases,
)

FLOAT64 = [name for name in implementations("float64") if name != "definition"]
FLOAT32_ONLY = [
    name for name in implementations("float32") if name not in implementations("float64")
]
TOLERANCE = {"float64": 1e-11, "float32": 2e-5, "bfloat16": 4 * 2.0**-9, "float16": 4 * 2.0**-12}
CASES = list(random_cases(60))
# Half a minute each; and few channels, as these cases have, tpu_matrix takes apart.
FEW = {"tpu_lanes": 2, "tpu_lanes_packed": 1, "tpu_matrix_packed": 1}
# The first 12 cases (all corners among them) for every implementation, the others in turn.
PAIRS = [
    (case, name)
    for index, case in enumerate(CASES)
    for place, name in enumerate(FLOAT64)
    if index < 12 or index % len(FLOAT64) == place
]
# What has no float64 runs in an interpreter here, which takes seconds to compile.
KERNEL_PAIRS = [
    pytest.param(case, name, marks=[] if index < FEW.get(name, 12) else pytest.mark.slow)
    for index, case in enumerate(CASES[:12])
    for name in FLOAT32_ONLY
    if case.content or not name.endswith(PACKED)
]
LOWER = [
    pytest.param(name, dtype, marks=pytest.mark.slow if name in FEW else [])
    for dtype in ("float32", "bfloat16", "float16")
    for name in implementations(dtype)
    if (name, dtype) not in [(kernel, "float32") for kernel in FLOAT32_ONLY]
]


@cache
def compiled(case: Case, implementation: str) -> Callable[[dict, jax.Array], dict]:
    """(inputs, output cotangent) -> output and the gradient of every input."""

    def attend(inputs: dict) -> jax.Array:
        inputs = {"key": None, **inputs}
        return attend_with(implementation, **inputs, **case.options)

    @partial(jax.jit, compiler_options=FAST_COMPILE)
    def run(inputs: dict, cotangent: jax.Array) -> dict:
        output, transpose = jax.vjp(attend, inputs)
        return {"output": output, **transpose(cotangent)[0]}

    return run


def value_and_gradients(case: Case, implementation: str, dtype: str, compute: str) -> dict:
    """Output and every gradient for inputs rounded to `dtype`, computed in `compute`."""
    inputs = {name: x for name, x in make_inputs(case, dtype).items() if x is not None}
    inputs = {name: x.astype(compute) for name, x in inputs.items()}
    cotangent = inputs.pop("cotangent")
    return jax.tree.map(np.asarray, compiled(case, implementation)(inputs, cotangent))


@cache
def reference(case: Case, dtype: str) -> dict:
    with jax.enable_x64(True):
        return value_and_gradients(case, "definition", dtype, "float64")


def assert_close(case: Case, implementation: str, dtype: str) -> None:
    got = value_and_gradients(case, implementation, dtype, dtype)
    expected = reference(case, dtype)
    assert got.keys() == expected.keys()
    for name, wanted in expected.items():
        assert got[name].dtype == jnp.dtype(dtype), name
        # A gradient that is 0 in exact arithmetic (K = 1: one weight, always 1) has no scale.
        scale = max(np.abs(wanted).max(), 1e-2 if dtype == "float64" else 1.0)
        error = np.abs(got[name].astype(np.float64) - wanted).max() / scale
        assert error <= TOLERANCE[dtype], f"{name}: relative error {error:.2e}"


@pytest.mark.parametrize("case, implementation", PAIRS, ids=str)
def test_float64_random_cases(case: Case, implementation: str, x64) -> None:
    assert_close(case, implementation, "float64")


@pytest.mark.parametrize("case, implementation", KERNEL_PAIRS, ids=str)
def test_float32_random_cases(case: Case, implementation: str) -> None:
    assert_close(case, implementation, "float32")


@pytest.mark.parametrize("implementation, dtype", LOWER)
@pytest.mark.parametrize("case", CASES[:3], ids=str)
def test_lower_precision(case: Case, dtype: str, implementation: str) -> None:
    assert_close(case, implementation, dtype)


def test_cases_cover_the_options() -> None:
    assert len({(c.boundary, c.per_head, c.content, c.embeddings) for c in CASES}) >= 10
    assert any(c.height != c.width for c in CASES)
    assert any(c.window >= 2 * max(c.height, c.width) for c in CASES)
    assert {c.heads for c in CASES} >= {1, 2, 3, 4, 8}
    assert {c.window for c in CASES} >= {1, 3, 5, 7, 9, 13}
    assert len({(c.height, c.width, c.window) for c in CASES}) >= 50
