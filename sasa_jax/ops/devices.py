"""What an operator knows of its devices while it is traced: platform, mesh, and what varies."""

from typing import TypeVar

import jax
from jax.sharding import AxisType

Tree = TypeVar("Tree")


def platform() -> str:
    """ "cpu", "gpu" or "tpu": of the context mesh, or of this machine."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def batch_mesh(batch: int) -> jax.sharding.AbstractMesh | None:
    """The context mesh if the batch can be spread over it, so that loops over images stay local."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or batch % mesh.size:
        return None
    if any(kind != AxisType.Auto for kind in mesh.axis_types):  # Manual: inside a shard_map already
        return None
    return mesh


def equally_varying(tree: Tree) -> Tree:
    """Marks every array as varying over the mesh axes that any of them varies over.

    Within a shard_map the replicated arrays' gradients differ per device: the mark makes JAX sum
    them.
    """

    def varying(x: jax.Array) -> frozenset[str]:
        return jax.typeof(x).manual_axis_type.varying

    axes = frozenset().union(*map(varying, jax.tree.leaves(tree)))

    def vary(x: jax.Array) -> jax.Array:
        missing = tuple(sorted(axes - varying(x)))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(vary, tree)
