"""How much fast (vector) memory the TPU kernels may plan with."""

import jax

SMALL = ("TPU v5", "TPU7x")  # v5p and v7x: 64 MiB; v5e and v6e have 128


def fast_memory() -> int:
    """Bytes on the devices of the context mesh, or of this machine; 4 MiB are left to others."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    kind = jax.devices()[0].device_kind if device is None else device.device_kind
    return (60 if kind in SMALL else 124) * 2**20
