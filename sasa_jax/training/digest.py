"""A number to compare states by, and the names of their arrays."""

import hashlib
from typing import Any

import jax
import numpy as np


def digest(tree: Any) -> str:
    """SHA-256, in hexadecimal, over path, dtype, shape and bytes of every leaf, sorted by path.

    Dicts, dataclasses and named tuples with the same names give the same paths, so a live state
    and its checkpoint have the same digest.
    """
    total = hashlib.sha256()
    for path, leaf in sorted(leaves_by_path(tree).items()):
        array = np.asarray(leaf)
        total.update(f"{path} {array.dtype} {array.shape}\n".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """The leaves, e.g. that of "params/stem/kernel"."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def path_name(path: tuple[Any, ...]) -> str:
    """The names of a JAX path, with / between them."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
