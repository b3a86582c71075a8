"""What an implementation of local attention is, and the gradient they share."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

Boundary = Literal["zero", "mask"]
# The logit of a slot that does not count. Finite, so that a query with nothing else, a padding one
# or one whose window's row is beyond the image, meets no inf - inf; exp of it is exactly 0.
OUTSIDE = -1e30


@dataclass(frozen=True)
class Options:
    """The static arguments of one call, checked and with defaults filled in."""

    window: int  # K, odd
    boundary: Boundary
    scale: float  # multiplies the whole logit


class Inputs(NamedTuple):
    """The array arguments of one call.

    query, key, value: [B, H, W, N, D]; key may be None.
    row_embedding, column_embedding: [K, D/2] or [K, N, D/2]; None together.
    """

    query: jax.Array
    key: jax.Array | None
    value: jax.Array
    row_embedding: jax.Array | None
    column_embedding: jax.Array | None

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """[B, H, W, N, D] of the query."""
        return self.query.shape


class PackedInputs(NamedTuple):
    """The array arguments of one call, with queries, keys and values in one array.

    packed: [B, H, W, 3, N, D], a pixel's query, key and value after one another, as one product
      with the three projections side by side leaves them.
    row_embedding, column_embedding: as in `Inputs`.
    """

    packed: jax.Array
    row_embedding: jax.Array | None
    column_embedding: jax.Array | None

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """[B, H, W, N, D] of the query."""
        return *self.packed.shape[:3], *self.packed.shape[4:]

    def unpacked(self) -> Inputs:
        """The same call with three arrays."""
        images = (self.packed[:, :, :, place] for place in range(3))
        return Inputs(*images, self.row_embedding, self.column_embedding)


@dataclass(frozen=True)
class Problem:
    """What an implementation may look at to say whether it can or should run."""

    platform: str  # "cpu", "gpu" or "tpu"
    dtype: jnp.dtype
    shape: tuple[int, int, int, int, int]  # B, H, W, N, D on one device
    options: Options


@dataclass(frozen=True)
class Implementation:
    """One way to compute local attention.

    attend: maps (options, inputs) to the output [B, H, W, N, D] and can be differentiated.
    refuses: says why it cannot run a problem, or None when it can.
    declines: says why it should not be taken unless named, or None.
    attend_packed: as attend, reading query, key and value in place from one array, and writing
      their gradients into one; None where it would have to take them apart.
    """

    attend: Callable[[Options, Inputs], jax.Array]
    refuses: Callable[[Problem], str | None] = lambda problem: None
    declines: Callable[[Problem], str | None] = lambda problem: None
    attend_packed: Callable[[Options, PackedInputs], jax.Array] | None = None

    def __call__(self, options: Options, inputs: Inputs | PackedInputs) -> jax.Array:
        """The output [B, H, W, N, D] for either kind of inputs."""
        if isinstance(inputs, Inputs):
            return self.attend(options, inputs)
        if self.attend_packed is None:
            return self.attend(options, inputs.unpacked())
        return self.attend_packed(options, inputs)


def float32_as_such(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of (options, inputs, ...) that multiplies float32 as float32.

    Accelerators round its factors by default: GPUs to TF32, TPUs to bfloat16. Inputs of 16 bits
    keep that default.
    """

    @wraps(function)
    def call(options: Options, inputs: Any, *others: Any) -> Any:
        if inputs[0].dtype != jnp.float32:
            return function(options, inputs, *others)
        with jax.default_matmul_precision("highest"):
            return function(options, inputs, *others)

    return call


Given = TypeVar("Given", Inputs, PackedInputs)
Forward = Callable[[Options, Given], tuple[jax.Array, Any]]
Backward = Callable[[Options, Given, Any, jax.Array], Given]


def differentiable(
    forward: Forward[Given], backward: Backward[Given]
) -> Callable[[Options, Given], jax.Array]:
    """Joins a forward and a backward pass into a function that reverse mode can differentiate.

    Between the passes live the inputs and what the forward pass saves, so memory grows with the map
    and not with the window.

    Args:
      forward: (options, inputs) -> (output, saved): saved holds, beside what the network keeps
        anyway, at most a few numbers per query and head.
      backward: (options, inputs, saved, output_cotangent) -> the inputs' cotangents, in the
        inputs' dtypes, None where the input is None.

    The result has no forward mode and no second derivatives: custom_vjp gives neither.
    """

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def attend(options: Options, inputs: Given) -> jax.Array:
        return forward(options, inputs)[0]

    def attend_forward(options: Options, inputs: Given):
        output, saved = forward(options, inputs)
        return output, (inputs, saved)

    def attend_backward(options: Options, saved, cotangent: jax.Array):
        return (backward(options, *saved, cotangent),)

    attend.defvjp(attend_forward, attend_backward)
    return attend
