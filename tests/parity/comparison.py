"""One call of a network, forwards and backwards, held against PyTorch's in float64.

Weights are copied. 1e-8 is what rounding allows: an operation is good to 1e-16, sums over some
thousand terms and twenty layers of normalisation lose four to six digits of it at worst.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from sasa_jax.models import apply, split
from tests.ops.cases import FAST_COMPILE
from tests.parity import torch_reference
from tests.parity.common import flatten, random_variables, relative_error

TOLERANCE = 1e-8


def compare(
    build: Callable[[], nnx.Module],
    reference: torch.nn.Module,
    images: np.ndarray,
    train: bool | None,
    *,
    losses: tuple[Callable[..., Any], Callable[..., Any]] | None = None,
) -> None:
    """Asserts that outputs, gradients (of the input too) and BN statistics agree.

    Args:
        build: the JAX module; it gives one array or a tuple of them.
        reference: the same in PyTorch.
        images: float64 [B, H, W, C].
        train: the mode; None if the layer knows no such thing.
        losses: in JAX and in PyTorch, of the module's outputs; what is compared in their place.
    """
    ours, theirs = losses or (lambda *outputs: outputs, lambda *outputs: outputs)
    graphdef, shapes = split(nnx.eval_shape(build))
    variables = random_variables(shapes, seed=1)
    torch_reference.load_variables(reference, variables)
    reference.train(bool(train))
    x = torch.from_numpy(images).permute(0, 3, 1, 2).requires_grad_()
    expected = _tuple(theirs(*_tuple(reference(x))))
    rng = np.random.default_rng(2)
    cotangents = [torch.from_numpy(np.asarray(rng.normal(size=y.shape))) for y in expected]
    torch.autograd.backward(expected, cotangents)

    @partial(jax.jit, compiler_options=FAST_COMPILE)
    def forward_and_backward(variables: dict, images: jax.Array) -> tuple:
        def call(params: dict, images: jax.Array) -> tuple:
            mode = {} if train is None else {"train": train}
            outputs, stats = apply(graphdef, variables | {"params": params}, images, **mode)
            return _tuple(ours(*_tuple(outputs))), stats

        outputs, vjp, stats = jax.vjp(call, variables["params"], images, has_aux=True)
        return outputs, stats, *vjp(tuple(jnp.asarray(_channels_last(c)) for c in cotangents))

    outputs, stats, grads, image_grad = forward_and_backward(variables, images)
    assert all(output.dtype == jnp.float64 for output in outputs)
    errors = {"input gradient": relative_error(image_grad, _channels_last(x.grad))}
    for index, (output, wanted) in enumerate(zip(outputs, expected, strict=True)):
        errors[f"output {index}"] = relative_error(output, _channels_last(wanted))
    named_grads = {name: p.grad for name, p in reference.named_parameters()}
    for kind, of_ours, of_theirs in (
        ("gradient of ", flatten(grads), torch_reference.jax_layout(named_grads)),
        ("statistic ", flatten(stats), torch_reference.jax_layout(dict(reference.named_buffers()))),
    ):
        assert of_ours.keys() == of_theirs.keys()
        errors |= {kind + name: relative_error(of_ours[name], of_theirs[name]) for name in of_ours}
    wrong = {name: error for name, error in errors.items() if error > TOLERANCE}
    assert not wrong, f"relative errors above {TOLERANCE}: {wrong}"
    # A gradient that vanishes in both would prove nothing.
    vanishing = [name for name, gradient in named_grads.items() if gradient.abs().max() < 1e-6]
    assert not vanishing, f"no gradient: {vanishing}"


def _tuple(outputs: Any) -> tuple:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _channels_last(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor).detach().numpy()
