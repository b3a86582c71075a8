"""The operator against PyTorch: output and all gradients over 210 random cases.

Thirty problems (shapes and options) with seven sets of numbers each: a problem is compiled once.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the independent reference needs PyTorch")

import sasa_jax  # noqa: E402
from tests.ops.cases import (  # noqa: E402
    FAST_COMPILE,
    Case,
    implementations,
    make_inputs,
    random_cases,
)
from tests.parity import torch_reference  # noqa: E402
from tests.parity.common import relative_error  # noqa: E402

CASES = list(random_cases(30))
SEEDS = 7
# float64: sums of at most a few thousand terms of order one, each good to 1e-16.
FLOAT64 = 1e-10
# In the low precisions JAX is held against float64 on the same, already rounded inputs, so only its
# own rounding shows; errors are absolute where a gradient is below one, the size of the inputs.
# First what the softmax weights are applied to: output and gradient of the values. float32 (unit
# roundoff 6e-8): logits reach 30 and are sums of a few products, so they err by some 1e-6, and the
# exponential makes that a relative error of the weights. bfloat16 (4e-3): logits and softmax stay
# float32; weights, values and result are rounded once each.
# Then the gradients through the softmax: P (dP - sum P dP) takes the sum from the saved output, and
# its rounding, 4e-3 |y| |dy| in bfloat16, does not cancel when the tables sum over the pixels.
LOW_PRECISION = {"float32": (2e-6, 1e-5), "bfloat16": (1e-2, 8e-2)}

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


def relative_errors(
    case: Case, implementation: str, dtype: str, *, seeds: int, small: float
) -> tuple[float, float]:
    """The worst over `seeds` sets of numbers: of output and value's gradient, of all the others."""
    run = ours(case, implementation, dtype)
    direct, through_softmax = [], []
    for seed in range(seeds):
        inputs = make_inputs(replace(case, seed=case.seed + 10**6 * seed), dtype)
        inputs = {name: x for name, x in inputs.items() if x is not None}
        cotangent = inputs.pop("cotangent")
        output, gradients = run(inputs, cotangent)
        expected, expected_gradients = theirs(case, inputs, cotangent)
        assert output.dtype == dtype
        assert gradients.keys() == expected_gradients.keys()
        direct.append(relative_error(output, expected, small))
        for name, gradient in gradients.items():
            assert gradient.dtype == dtype
            errors = direct if name == "value" else through_softmax
            errors.append(relative_error(gradient, expected_gradients[name], small))
    return max(direct), max(through_softmax)


@pytest.mark.parametrize("implementation", implementations("float64"))
@pytest.mark.parametrize("index", range(len(CASES)))
def test_float64(x64: None, index: int, implementation: str) -> None:
    errors = relative_errors(CASES[index], implementation, "float64", seeds=SEEDS, small=1e-11)
    assert max(errors) <= FLOAT64, CASES[index]


@pytest.mark.parametrize("dtype", LOW_PRECISION)
@pytest.mark.parametrize("implementation", implementations("float64"))
@pytest.mark.parametrize("index", range(8))
def test_low_precision(index: int, implementation: str, dtype: str) -> None:
    errors = relative_errors(CASES[index], implementation, dtype, seeds=SEEDS, small=1.0)
    assert all(error <= limit for error, limit in zip(errors, LOW_PRECISION[dtype], strict=True)), (
        f"{errors}: {CASES[index]}"
    )


@pytest.mark.parametrize("dtype", LOW_PRECISION)
@pytest.mark.parametrize("index", (0, 3))
def test_kernel(index: int, dtype: str) -> None:
    """Two cases, because the interpreter takes seconds to compile; tests/ops has the others."""
    errors = relative_errors(CASES[index], "tpu_matrix", dtype, seeds=SEEDS, small=1.0)
    assert all(error <= limit for error, limit in zip(errors, LOW_PRECISION[dtype], strict=True))


@pytest.mark.parametrize("index", range(20))
def test_weights(x64: None, index: int) -> None:
    case = CASES[index]
    inputs = make_inputs(case)
    tables = [inputs["row_embedding"], inputs["column_embedding"]]
    call = jax.jit(
        partial(sasa_jax.local_attention_weights, **case.options), compiler_options=FAST_COMPILE
    )
    images = [inputs[name] for name in ("query", "key", "value")]
    tensors = [None if x is None else torch.from_numpy(x) for x in (*images, *tables)]
    _, expected = torch_reference.local_attention(
        *map(channels_first, tensors[:3]), *tensors[3:], **case.options
    )
    weights = call(*images[:2], *tables)
    assert relative_error(weights, expected.permute(0, 4, 5, 1, 2, 3)) <= FLOAT64, case
