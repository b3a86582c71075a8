"""What the operator's benchmark compares, as JAX functions with the shapes of their inputs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from benchmarks.common import note
from sasa_jax import local_attention
from sasa_jax.ops.local_attention.contract import Options, Problem
from sasa_jax.ops.local_attention.registry import IMPLEMENTATIONS, picked
from sasa_jax.ops.local_attention.workloads import Workload


@dataclass(frozen=True)
class Contender:
    """A function of images [B, H, W, C] and parameters, to an image."""

    function: Callable[..., jax.Array]
    inputs: tuple[jax.ShapeDtypeStruct, ...]
    picked: bool = False  # taken when no implementation is named

    @property
    def programs(self) -> dict[str, tuple[Callable, tuple[jax.ShapeDtypeStruct, ...]]]:
        """By direction: what is timed, and its inputs; the backward pass is of all inputs."""
        output = jax.eval_shape(self.function, *self.inputs)
        return {
            "forward": (self.function, self.inputs),
            "forward_backward": (self._both, (output, *self.inputs)),
        }

    def _both(self, cotangent: jax.Array, *inputs: jax.Array) -> tuple:
        output, transpose = jax.vjp(self.function, *inputs)
        return output, transpose(cotangent)


def contenders(workload: Workload, batch: int, dtype: str, platform: str) -> dict[str, Contender]:
    """All implementations that do not refuse the workload, and the convolution that it replaces."""
    image = jax.ShapeDtypeStruct((batch, *workload.image), dtype)
    shape = workload.shape(batch)
    table = jax.ShapeDtypeStruct((workload.window, shape[-1] // 2), dtype)
    options = Options(workload.window, "zero", 1.0)
    problem = Problem(platform, jnp.dtype(dtype), shape, options)
    default = picked(problem)
    found = {}
    for name, implementation in IMPLEMENTATIONS.items():
        reason = implementation.refuses(problem)
        contender = Contender(
            partial(_attend, shape, workload.window, name),
            (image, image, image, table, table),
            picked=name == default,
        )
        if reason is None and platform == "cpu" and _interpreted(contender):
            reason = "a kernel for other hardware, interpreted here"
        if reason is None:
            found[name] = contender
        else:
            note(f"  {name} left out: {reason}")
    kernel = jax.ShapeDtypeStruct((3, 3, workload.channels, workload.channels), dtype)
    found["convolution_3x3"] = Contender(_convolution, (image, kernel))
    return found


def _attend(
    shape: tuple[int, ...], window: int, name: str, query, key, value, rows, columns
) -> jax.Array:
    query, key, value = (x.reshape(shape) for x in (query, key, value))
    output = local_attention(query, key, value, rows, columns, window=window, implementation=name)
    return output.reshape(*shape[:3], -1)


def _convolution(image: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _interpreted(contender: Contender) -> bool:
    """Whether a Pallas kernel is in it."""
    return "pallas_call" in str(jax.make_jaxpr(contender.function)(*contender.inputs))
