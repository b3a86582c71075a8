"""The public functions: checks, choice of implementation, several devices."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from sasa_jax.ops.devices import batch_mesh, equally_varying, platform
from sasa_jax.ops.local_attention import definition
from sasa_jax.ops.local_attention.checks import checked, checked_options, checked_packed
from sasa_jax.ops.local_attention.contract import (
    Boundary,
    Implementation,
    Inputs,
    Options,
    PackedInputs,
    Problem,
)
from sasa_jax.ops.local_attention.registry import choose


def local_attention(
    query: jax.Array,
    key: jax.Array | None,
    value: jax.Array,
    row_embedding: jax.Array | None = None,
    column_embedding: jax.Array | None = None,
    *,
    window: int = 7,
    boundary: Boundary = "zero",
    scale: float | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Attention of every pixel over the K x K window around it (section 3.2, equations 2 and 3).

        y_ij = sum_ab softmax_ab(scale (q_ij . k_ab + q_ij . r_{a-i, b-j})) v_ab

    over the pixels ab of the window around ij, for each head apart, where
    r_{a-i, b-j} = concat(row_embedding[a-i], column_embedding[b-j]). Projections are the caller's.
    Logits and softmax are float32, float64 for float64 inputs.

    Args:
      query: [B, H, W, N, D], float32, float64, bfloat16 or float16.
      key: as query; or None for attention by position alone (table 6), which needs the embeddings.
      value: as query.
      row_embedding: [K, D/2], or [K, N, D/2] for one table per head; same dtype. Index t stands for
        a key t - K//2 rows below its query. None, with column_embedding, for no position term.
      column_embedding: the same for columns, key t - K//2 columns to the right.
      window: K, odd; may be larger than the map.
      boundary: "zero": slots outside the image have key 0 and value 0 and stay in the softmax, as
        zero padding before projections without bias gives. "mask": they get no probability.
      scale: multiplies the logits; None for 1, as in the paper.
      implementation: one of "tpu_lanes", "tpu_matrix", "gpu_triton", "dense", "rows", "definition";
        None for the best at hand (`python -m sasa_jax.ops.local_attention --explain` says which,
        and why).

    Returns:
      [B, H, W, N, D] in the inputs' dtype. Reverse-mode differentiation once; forward mode and
      second derivatives with "definition" only.

    Under a context mesh (`jax.set_mesh`) whose axes are all Auto and whose size divides B, each
    device attends to its own images; gradients of the embeddings are summed.

    Raises:
      TypeError: not an array, a dtype that is not supported or not the query's, a window or scale
        that is not a number.
      ValueError: wrong shape, even window, odd head dimension with embeddings, one embedding
        without the other, neither key nor embeddings, unknown boundary or implementation.
      NotImplementedError: the implementation named cannot run this problem.
    """
    inputs = Inputs(query, key, value, row_embedding, column_embedding)
    inputs, options = checked(inputs, window=window, boundary=boundary, scale=scale)
    query = inputs.query
    chosen = _chosen(implementation, query.shape, query.dtype, options)
    return _attend(chosen, options, batch_mesh(query.shape[0]), inputs)


def local_attention_packed(
    packed: jax.Array,
    row_embedding: jax.Array | None = None,
    column_embedding: jax.Array | None = None,
    *,
    window: int = 7,
    boundary: Boundary = "zero",
    scale: float | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """`local_attention` of queries, keys and values that one projection has left in one array.

    Where `reads_packed` says so, the array is read in place, and the three gradients are written
    into one array: the projection's backward pass is one product, too. Elsewhere it is taken apart.

    Args:
      packed: [B, H, W, 3, N, D], each pixel's query, key and value.

    Other arguments, result and errors are those of `local_attention`.
    """
    inputs = PackedInputs(packed, row_embedding, column_embedding)
    inputs, options = checked_packed(inputs, window=window, boundary=boundary, scale=scale)
    shape = *packed.shape[:3], *packed.shape[4:]
    chosen = _chosen(implementation, shape, packed.dtype, options)
    return _attend(chosen, options, batch_mesh(shape[0]), inputs)


def reads_packed(
    shape: tuple[int, int, int, int, int],
    dtype: jax.typing.DTypeLike,
    *,
    window: int = 7,
    boundary: Boundary = "zero",
    scale: float | None = None,
    implementation: str | None = None,
) -> bool:
    """Whether `local_attention_packed` would read its array in place, here and for this problem.

    Args:
      shape: [B, H, W, N, D] of the query.
      dtype: of all arrays.

    Other arguments and errors are those of `local_attention`.
    """
    options = checked_options(window, boundary, scale)
    return _chosen(implementation, shape, dtype, options).attend_packed is not None


def local_attention_weights(
    query: jax.Array,
    key: jax.Array | None,
    row_embedding: jax.Array | None = None,
    column_embedding: jax.Array | None = None,
    *,
    window: int = 7,
    boundary: Boundary = "zero",
    scale: float | None = None,
) -> jax.Array:
    """The attention maps of `local_attention`, for looking at: they take K^2 numbers a pixel.

    Returns:
      [B, H, W, N, K, K], float32 (float64 for float64 inputs), summing to 1 over the last two axes.
      Entry [..., r, c] belongs to the key r - K//2 rows below and c - K//2 columns right of its
      query. Slots outside the image hold what the softmax gives them: exactly 0 with "mask".

    Arguments and errors are those of `local_attention`.
    """
    inputs = Inputs(query, key, query, row_embedding, column_embedding)
    inputs, options = checked(inputs, window=window, boundary=boundary, scale=scale)
    return definition.attention_weights(options, inputs)


@partial(jax.jit, static_argnums=(0, 1, 2))  # so that calls outside jit compile once
def _attend(
    chosen: Implementation,
    options: Options,
    mesh: jax.sharding.AbstractMesh | None,
    inputs: Inputs | PackedInputs,
) -> jax.Array:
    if mesh is None:
        return chosen(options, equally_varying(inputs))

    # Across the shard_map images are [B, H, W, channels], as projections make them. Where XLA finds
    # heads apart from dims there, it gives the projections their layout, at twice the time on TPU.
    def merged(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:3], -1) if x.ndim >= 5 else x

    def attend(local: Inputs | PackedInputs) -> jax.Array:
        local = jax.tree.map(lambda x, whole: x.reshape(-1, *whole.shape[1:]), local, inputs)
        return merged(chosen(options, equally_varying(local)))

    images = P(mesh.axis_names)
    specs = jax.tree.map(lambda x: images if x.ndim >= 5 else P(), inputs)
    # Unchecked: Pallas' interpreter does not keep track of what varies over the mesh.
    spread = jax.shard_map(attend, mesh=mesh, in_specs=(specs,), out_specs=images, check_vma=False)
    y = spread(jax.tree.map(merged, inputs))
    return y.reshape(*y.shape[:3], *inputs[0].shape[-2:])


def _chosen(
    implementation: str | None,
    shape: tuple[int, int, int, int, int],
    dtype: jax.typing.DTypeLike,
    options: Options,
) -> Implementation:
    """For a problem of all devices, whose images are spread over the context mesh."""
    batch, *rest = shape
    mesh = batch_mesh(batch)
    devices = 1 if mesh is None else mesh.size
    problem = Problem(
        platform=platform(),
        dtype=jnp.dtype(dtype),
        shape=(batch // devices, *rest),
        options=options,
    )
    return choose(implementation, problem)
