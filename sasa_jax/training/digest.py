"""One number for a whole state, to compare runs by."""

import hashlib
from typing import Any

import jax
import numpy as np


def digest(tree: Any) -> str:
    """SHA-256, in hexadecimal, over path, dtype, shape and bytes of every leaf, sorted by path.

    Dicts, dataclasses and named tuples with the same names give the same paths, so a live state
    and its checkpoint have the same digest.
    """
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    total = hashlib.sha256()
    for path, leaf in sorted(leaves.items()):
        total.update(f"{path} {leaf.dtype} {leaf.shape}\n".encode())
        total.update(np.ascontiguousarray(leaf).tobytes())
    return total.hexdigest()
