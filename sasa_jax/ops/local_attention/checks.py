"""Checks of the arguments of local attention; each error names the argument and what is allowed."""

import math
import operator
import typing

import jax
import jax.numpy as jnp
import numpy as np

from sasa_jax.checks import nearest
from sasa_jax.ops.local_attention.contract import Boundary, Inputs, Options, PackedInputs

BOUNDARIES = typing.get_args(Boundary)
DTYPES = ("float32", "bfloat16", "float16", "float64")


def checked(
    inputs: Inputs, *, window: int, boundary: str, scale: float | None
) -> tuple[Inputs, Options]:
    """The arguments as JAX arrays and filled-in options; raises as `local_attention` says."""
    for name, array in inputs._asdict().items():
        _check_array(name, array)
    options = checked_options(window, boundary, scale)
    _check_images(inputs)
    _check_embeddings(inputs, options.window)
    return jax.tree.map(jnp.asarray, inputs), options


def checked_packed(
    inputs: PackedInputs, *, window: int, boundary: str, scale: float | None
) -> tuple[PackedInputs, Options]:
    """As `checked`, for `local_attention_packed`."""
    for name, array in inputs._asdict().items():
        _check_array(name, array)
    options = checked_options(window, boundary, scale)
    shape = inputs.packed.shape
    if len(shape) != 6 or shape[3] != 3 or 0 in shape:
        raise ValueError(
            f"packed: got shape {shape}, expected [batch, height, width, 3, heads, head_dim], none "
            "of them 0: each pixel's query, key and value"
        )
    image = jax.ShapeDtypeStruct((*shape[:3], *shape[4:]), inputs.packed.dtype)
    separate = Inputs(image, image, image, inputs.row_embedding, inputs.column_embedding)
    _check_images(separate)
    _check_embeddings(separate, options.window)
    return jax.tree.map(jnp.asarray, inputs), options


def _check_array(name: str, array: object) -> None:
    optional = name in ("key", "row_embedding", "column_embedding")
    if array is None and optional:
        return
    if not isinstance(array, jax.Array | np.ndarray):
        allowed = "a JAX or NumPy array" + (" or None" if optional else "")
        raise TypeError(f"{name}: got {type(array).__name__}, expected {allowed}")
    if array.dtype not in [jnp.dtype(dtype) for dtype in DTYPES]:
        raise TypeError(f"{name}: got dtype {array.dtype}, expected one of {', '.join(DTYPES)}")


def checked_options(window: int, boundary: str, scale: float | None) -> Options:
    """The static arguments with defaults filled in; raises as `local_attention` says."""
    try:
        window = operator.index(window)
    except TypeError:
        raise TypeError(f"window: got {window!r}, expected an odd positive integer") from None
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window: got {window}, expected an odd positive integer such as 7")
    if boundary not in BOUNDARIES:
        raise ValueError(
            f"boundary: got {boundary!r}, expected one of {list(BOUNDARIES)}"
            f"{nearest(boundary, BOUNDARIES)}"
        )
    if scale is None:
        scale = 1.0
    if isinstance(scale, jax.Array) or not isinstance(scale, int | float | np.number):
        raise TypeError(
            f"scale: got {type(scale).__name__}, expected None or a Python number, the same for "
            "every call of a compiled function; multiply the query to learn or change a scale"
        )
    if not math.isfinite(scale):
        raise ValueError(f"scale: got {scale}, expected None or a finite number")
    return Options(window=window, boundary=boundary, scale=float(scale))


def _check_images(inputs: Inputs) -> None:
    query = inputs.query
    if query.ndim != 5 or 0 in query.shape:
        raise ValueError(
            f"query: got shape {query.shape}, expected [batch, height, width, heads, head_dim], "
            "none of them 0; split channels into heads first"
        )
    for name in ("key", "value"):
        array = getattr(inputs, name)
        if array is not None and array.shape != query.shape:
            raise ValueError(
                f"{name}: got shape {array.shape}, expected the query's shape {query.shape}"
            )
    for name, array in inputs._asdict().items():
        if array is not None and array.dtype != query.dtype:
            raise TypeError(
                f"{name}: got dtype {array.dtype}, expected the query's dtype {query.dtype}; "
                "cast one of them"
            )


def _check_embeddings(inputs: Inputs, window: int) -> None:
    tables = {name: getattr(inputs, name) for name in ("row_embedding", "column_embedding")}
    missing = [name for name, table in tables.items() if table is None]
    if len(missing) == 1:
        raise ValueError(
            f"{missing[0]}: got None while the other embedding is given; "
            "expected both embeddings or neither"
        )
    if missing:
        if inputs.key is None:
            raise ValueError(
                "key: got None without row_embedding and column_embedding, so every logit would "
                "be 0; expected a key, or both embeddings for attention by position alone"
            )
        return
    heads, dim = inputs.query.shape[3:]
    if dim % 2:
        raise ValueError(
            f"query: got an odd head dimension {dim}, expected an even one: the row embedding "
            "takes the first half and the column embedding the other"
        )
    shared, per_head = (window, dim // 2), (window, heads, dim // 2)
    for name, table in tables.items():
        if table.shape not in (shared, per_head):
            raise ValueError(
                f"{name}: got shape {table.shape}, expected [window, head_dim/2] = {shared} or "
                f"[window, heads, head_dim/2] = {per_head}"
            )
    if tables["row_embedding"].ndim != tables["column_embedding"].ndim:
        raise ValueError(
            f"column_embedding: got shape {tables['column_embedding'].shape}, expected the "
            f"row_embedding's kind, {tables['row_embedding'].shape}: both shared or both per head"
        )
