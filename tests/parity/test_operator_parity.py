"""The operator against PyTorch: output and all gradients over random cases.

Forty problems (shapes and options) with five sets of numbers each: a problem is compiled once.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the independent reference needs PyTorch")

import sasa_jax  # noqa: E402
from sasa_jax.ops.local_attention.registry import IMPLEMENTATIONS  # noqa: E402
from tests.ops.cases import Case, make_inputs, random_cases  # noqa: E402
from tests.parity import torch_reference  # noqa: E402
from tests.parity.common import FAST_COMPILE, relative_error  # noqa: E402

CASES = list(random_cases(40))
SEEDS = 5
# float64: sums of at most a few thousand terms of order one, each good to 1e-16.
FLOAT64 = 1e-10
# In the low precisions JAX is held against float64 on the same, already rounded inputs, so only its
# own rounding shows. float32 (unit roundoff 6e-8): logits reach about 30 and are sums of a few
# products, so their error, which the softmax makes a relative error of the weights, is about 4e-6;
# the backward differences dP - sum(P dP) and the sums over pixels for the tables add as much again.
# bfloat16 (4e-3): logits and softmax are still float32, but weights may be rounded once before they
# meet the values, and each result is rounded once: a handful of roundings.
LOW_PRECISION = {"float32": 2e-5, "bfloat16": 2e-2}

Arrays = dict[str, np.ndarray]


def ours(
    case: Case, implementation: str, dtype: str
) -> Callable[[Arrays], tuple[jax.Array, Arrays]]:
    """Compiled once for the case: (inputs, cotangent) -> output, gradient for each input."""

    # Optimisation only moves roundings, which show in the low precisions alone.
    options = FAST_COMPILE if dtype == "float64" else None

    @partial(jax.jit, compiler_options=options)
    def run(inputs: Arrays, cotangent: np.ndarray) -> tuple[jax.Array, Arrays]:
        def attend(inputs: Arrays) -> jax.Array:
            arguments = {"key": None} | inputs
            return sasa_jax.local_attention(
                **arguments, **case.options, implementation=implementation
            )

        output, vjp = jax.vjp(attend, inputs)
        return output, *vjp(cotangent)

    return run


def channels_first(image: torch.Tensor | None) -> torch.Tensor | None:
    """[B, H, W, N, D] -> [B, N, D, H, W]."""
    return None if image is None else image.permute(0, 3, 4, 1, 2)


def theirs(case: Case, inputs: Arrays, cotangent: np.ndarray) -> tuple[np.ndarray, Arrays]:
    """The same from the reference, in float64 whatever the dtype of the inputs."""
    leaves = {
        name: torch.from_numpy(np.asarray(x, np.float64)).requires_grad_()
        for name, x in inputs.items()
    }
    output, _ = torch_reference.local_attention(
        *(channels_first(leaves.get(name)) for name in ("query", "key", "value")),
        leaves.get("row_embedding"),
        leaves.get("column_embedding"),
        **case.options,
    )
    output.backward(channels_first(torch.from_numpy(np.asarray(cotangent, np.float64))))
    gradients = {name: leaf.grad.numpy() for name, leaf in leaves.items()}
    return output.permute(0, 3, 4, 1, 2).detach().numpy(), gradients


def worst_error(case: Case, implementation: str, dtype: str, seeds: int) -> float:
    """The largest relative error over output and gradients and `seeds` sets of numbers."""
    run, errors = ours(case, implementation, dtype), {}
    for seed in range(seeds):
        inputs = make_inputs(replace(case, seed=case.seed + 10**6 * seed), dtype)
        inputs = {name: x for name, x in inputs.items() if x is not None}
        cotangent = inputs.pop("cotangent")
        try:
            output, gradients = run(inputs, cotangent)
        except NotImplementedError as refusal:
            assert implementation not in ("definition", "halo"), "these two must run every case"
            pytest.skip(str(refusal))
        assert output.dtype == dtype
        expected, expected_gradients = theirs(case, inputs, cotangent)
        assert gradients.keys() == expected_gradients.keys()
        errors[seed, "output"] = relative_error(output, expected)
        for name, gradient in gradients.items():
            assert gradient.dtype == dtype
            errors[seed, name] = relative_error(gradient, expected_gradients[name])
    return max(errors.values())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("index", range(len(CASES)))
def test_float64(x64: None, index: int, implementation: str) -> None:
    error = worst_error(CASES[index], implementation, "float64", SEEDS)
    print("ERR", implementation, "float64", error)
    assert error <= FLOAT64, CASES[index]


@pytest.mark.parametrize("dtype", LOW_PRECISION)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("index", range(10))
def test_low_precision(index: int, implementation: str, dtype: str) -> None:
    error = worst_error(CASES[index], implementation, dtype, 2)
    print("ERR", implementation, dtype, error)
    assert error <= LOW_PRECISION[dtype], CASES[index]


@pytest.mark.parametrize("index", range(len(CASES)))
def test_weights(x64: None, index: int) -> None:
    case = CASES[index]
    inputs = make_inputs(case)
    tables = [inputs["row_embedding"], inputs["column_embedding"]]
    ours = sasa_jax.local_attention_weights(inputs["query"], inputs["key"], *tables, **case.options)
    images = [inputs[name] for name in ("query", "key", "value")]
    tensors = [None if x is None else torch.from_numpy(x) for x in (*images, *tables)]
    _, theirs = torch_reference.local_attention(
        *map(channels_first, tensors[:3]), *tensors[3:], **case.options
    )
    assert relative_error(ours, theirs.permute(0, 4, 5, 1, 2, 3)) <= FLOAT64, case
