"""What the TPU kernels share: dtypes, the fast (vector) memory to plan with, result shapes."""

import jax
import jax.numpy as jnp

DTYPES = ("float32", "bfloat16")

SMALL = ("TPU v5", "TPU7x")  # v5p and v7x: 64 MiB; v5e and v6e have 128


def fast_memory() -> int:
    """Bytes on the devices of the context mesh, or of this machine; 4 MiB are left to others."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    kind = jax.devices()[0].device_kind if device is None else device.device_kind
    return (60 if kind in SMALL else 124) * 2**20


def result(x: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.ShapeDtypeStruct:
    """Of a kernel: inside a shard_map it varies over the same mesh axes as `x`."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)
