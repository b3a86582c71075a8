"""Runs a Triton kernel as a JAX operation: compiled by jax-triton, or in Triton's interpreter."""

import importlib.util
import inspect
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from sasa_jax.ops.devices import platform
from sasa_jax.ops.local_attention.gpu_triton.constants import Launch

OLDEST = 8.0  # compute capability
INTERPRETER = threading.Lock()  # it keeps its state in the module
NEEDS = "it needs the packages of the extra gpu: pip install 'sasa_jax[gpu]'"


def unavailable(platform: str) -> str | None:
    """Why no kernel runs on a platform, or None."""
    if importlib.util.find_spec("triton") is None:
        return NEEDS
    if platform == "gpu":
        return _too_old() if importlib.util.find_spec("jax_triton") else NEEDS
    if not interpreting():
        return f"written for GPU; on {platform} it runs only in an interpreter, for tests"
    if importlib.util.find_spec("torch") is None:
        return "Triton's interpreter needs PyTorch"
    return None


def _too_old() -> str | None:
    """Of this machine's GPU; where there is none, nothing is said."""
    capability = getattr(jax.devices()[0], "compute_capability", None)
    if capability is not None and float(capability) < OLDEST:
        return f"compute capability {capability}; it takes {OLDEST} and up"
    return None


def interpreting() -> bool:
    """Whether TRITON_INTERPRET was 1 when Triton was imported, as its interpreter needs."""
    import triton

    return triton.knobs.runtime.interpret


def call(
    launch: Launch,
    inputs: Sequence[jax.Array],
    results: Sequence[jax.ShapeDtypeStruct],
) -> tuple[jax.Array, ...]:
    """What a kernel of `kernels` returns.

    Under vmap it runs once for each element. Inside a shard_map results vary over the same mesh
    axes as the first input.
    """

    @jax.custom_batching.sequential_vmap
    def operation(*inputs: jax.Array) -> tuple[jax.Array, ...]:
        if platform() == "gpu":
            return tuple(_compiled(launch, inputs, **{_results_name(): list(results)}))
        return tuple(_interpreted(launch, inputs, results))

    return _varying_like(inputs[0], operation(*inputs))


def call_into(launch: Launch, inputs: Sequence[jax.Array], target: jax.Array) -> jax.Array:
    """`target`, of which a kernel has written a part, without a copy where nothing else reads it.

    To the kernel it is the pointer after the inputs'; the one after that means nothing. Otherwise
    as `call`.
    """

    @jax.custom_batching.sequential_vmap
    def operation(*operands: jax.Array) -> jax.Array:
        if platform() == "gpu":
            return _compiled_into(launch, operands)
        return _interpreted(launch, operands, [_like(target)], into=True)[0]

    return _varying_like(inputs[0], operation(*inputs, target))


def _varying_like(first: jax.Array, results: Any) -> Any:
    axes = tuple(sorted(jax.typeof(first).manual_axis_type.varying))
    return jax.tree.map(lambda x: jax.lax.pcast(x, axes, to="varying") if axes else x, results)


def _like(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _compiled(launch: Launch, operands: Sequence[Any], **options: Any) -> Sequence[jax.Array]:
    import jax_triton

    from sasa_jax.ops.local_attention.gpu_triton import kernels

    return jax_triton.triton_call(
        *operands,
        kernel=getattr(kernels, f"local_attention_{launch.kernel}"),
        grid=launch.programs,
        name=f"local_attention_{launch.kernel}",
        num_warps=launch.warps,
        num_stages=launch.stages,
        **launch.constants,
        **options,
    )


def _compiled_into(launch: Launch, operands: Sequence[jax.Array]) -> jax.Array:
    """With the last operand as the target."""
    *inputs, target = operands
    if _results_name() == "out_shape":
        options = dict(out_shape=[_like(target)], input_output_aliases={len(inputs): 0})
        return _compiled(launch, operands, **options)[0]
    reference = jax.new_ref(target)
    unused = jax.ShapeDtypeStruct((1,), target.dtype)
    _compiled(launch, [*inputs, reference], out_type=[unused])
    return jax.freeze(reference)


def _results_name() -> str:
    """Of jax-triton's argument for what a kernel returns: it was another until jax-triton 0.4."""
    import jax_triton

    parameters = inspect.signature(jax_triton.triton_call).parameters
    return "out_type" if "out_type" in parameters else "out_shape"


def _interpreted(
    launch: Launch,
    operands: Sequence[jax.Array],
    results: Sequence[jax.ShapeDtypeStruct],
    into: bool = False,
) -> Sequence[jax.Array]:
    """In float32 for bfloat16, whose bits the interpreter multiplies as integers.

    into: the last operand is what the kernel writes to and returns.
    """
    import torch

    from sasa_jax.ops.local_attention.gpu_triton import kernels

    kernel = getattr(kernels, f"local_attention_{launch.kernel}")

    def run(*operands: jax.Array) -> list[np.ndarray]:
        arrays = [np.array(x, _interpreted_dtype(x.dtype)) for x in operands]
        written = [np.empty(x.shape, _interpreted_dtype(x.dtype)) for x in results]
        pointers = [torch.from_numpy(x) for x in (*arrays, *written)]
        with INTERPRETER, warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # NaN, and exponentials of -1e30
            kernel[(launch.programs,)](*pointers, **launch.constants)
        written = arrays[-1:] if into else written
        return [x.astype(y.dtype) for x, y in zip(written, results, strict=True)]

    return jax.pure_callback(run, list(results), *operands)


def _interpreted_dtype(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.float32) if dtype.name == "bfloat16" else np.dtype(dtype)
