"""Runs a Triton kernel as a JAX operation: compiled by jax-triton, or in Triton's interpreter."""

import importlib.util
import inspect
import threading
import warnings
from collections.abc import Sequence

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
    run = _compiled if platform() == "gpu" else _interpreted

    @jax.custom_batching.sequential_vmap
    def operation(*inputs: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(run(launch, inputs, results))

    axes = tuple(sorted(jax.typeof(inputs[0]).manual_axis_type.varying))
    found = operation(*inputs)
    return tuple(jax.lax.pcast(x, axes, to="varying") for x in found) if axes else found


def _compiled(
    launch: Launch, inputs: Sequence[jax.Array], results: Sequence[jax.ShapeDtypeStruct]
) -> Sequence[jax.Array]:
    import jax_triton

    from sasa_jax.ops.local_attention.gpu_triton import kernels

    parameters = inspect.signature(jax_triton.triton_call).parameters
    results_name = "out_type" if "out_type" in parameters else "out_shape"  # until jax-triton 0.4
    return jax_triton.triton_call(
        *inputs,
        kernel=getattr(kernels, f"local_attention_{launch.kernel}"),
        **{results_name: list(results)},
        grid=launch.programs,
        name=f"local_attention_{launch.kernel}",
        num_warps=launch.warps,
        num_stages=1,  # copies ahead of time pass by the first cache, where halos overlap
        **launch.constants,
    )


def _interpreted(
    launch: Launch, inputs: Sequence[jax.Array], results: Sequence[jax.ShapeDtypeStruct]
) -> Sequence[jax.Array]:
    """In float32 for bfloat16, whose bits the interpreter multiplies as integers."""
    import torch

    from sasa_jax.ops.local_attention.gpu_triton import kernels

    kernel = getattr(kernels, f"local_attention_{launch.kernel}")

    def run(*inputs: jax.Array) -> list[np.ndarray]:
        arrays = [np.array(x, _interpreted_dtype(x.dtype)) for x in inputs]
        arrays += [np.empty(x.shape, _interpreted_dtype(x.dtype)) for x in results]
        with INTERPRETER, warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # NaN, and exponentials of -1e30
            kernel[(launch.programs,)](*map(torch.from_numpy, arrays), **launch.constants)
        return [x.astype(y.dtype) for x, y in zip(arrays[len(inputs) :], results, strict=True)]

    return jax.pure_callback(run, list(results), *inputs)


def _interpreted_dtype(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.float32) if dtype.name == "bfloat16" else np.dtype(dtype)
