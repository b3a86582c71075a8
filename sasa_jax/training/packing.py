"""A state as one vector of bytes, and a table of what lies where in it.

Orbax takes half a millisecond of a core for every array that it writes, and a state has hundreds:
as one vector the demo's is written with a fifth of the work. It is stored as it is: compressed, 32
bits of a weight are still 29, and 206 MB take four times the work.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sasa_jax.training.digest import leaves_by_path, path_name

# By path: {"dtype", "shape", "crc32"}. The arrays follow one another in the order of their paths.
Table = dict[str, dict[str, Any]]


def pack(tree: Any) -> tuple[np.ndarray, Table]:
    """The bytes of all leaves, uint8 [bytes], and their table, which JSON can hold."""
    table, parts = {}, [np.empty(0, np.uint8)]
    for path, leaf in sorted(leaves_by_path(tree).items()):
        parts.append(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8))
        table[path] = {
            "dtype": leaf.dtype.name,
            "shape": list(leaf.shape),
            "crc32": zlib.crc32(parts[-1]),  # 3 GB a second
        }
    return np.concatenate(parts), table


def unpack(vector: np.ndarray, table: Table) -> dict[str, np.ndarray]:
    """The arrays by path, as views of the vector.

    Raises:
        ValueError: naming the arrays whose bytes are not those that were packed.
    """
    arrays, wrong, begin = {}, [], 0
    for path, entry in sorted(table.items()):
        shape, dtype = tuple(entry["shape"]), jnp.dtype(entry["dtype"])
        end = begin + int(np.prod(shape)) * dtype.itemsize
        part, begin = vector[begin:end], end
        if zlib.crc32(part) != entry["crc32"]:
            wrong.append(path)
        else:
            arrays[path] = part.view(dtype).reshape(shape)
    if wrong or begin != vector.size:
        raise ValueError(
            f"{len(wrong)} of {len(table)} arrays are not those that were saved: "
            f"{', '.join(wrong[:3])}"
        )
    return arrays


def differences(arrays: dict[str, np.ndarray], abstract: Any) -> list[str]:
    """What is to be changed in the arrays to fit an abstract tree; empty if they do."""
    had = {path: _kind(array) for path, array in arrays.items()}
    wanted = {path: _kind(leaf) for path, leaf in leaves_by_path(abstract).items()}
    return [
        f"{path} was {had.get(path, 'absent')} and is {wanted.get(path, 'absent')}"
        for path in sorted(had.keys() | wanted.keys())
        if had.get(path) != wanted.get(path)
    ]


def place(arrays: dict[str, np.ndarray], abstract: Any) -> Any:
    """A tree like the abstract one, which they must fit, on its devices with its shardings."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.make_array_from_process_local_data(
            leaf.sharding, arrays[path_name(path)], leaf.shape
        ),
        abstract,
    )


def nested(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Nested dicts of the names in the paths."""
    tree: dict[str, Any] = {}
    for path, array in arrays.items():
        *branches, name = path.split("/")
        branch = tree
        for key in branches:
            branch = branch.setdefault(key, {})
        branch[name] = array
    return tree


def _kind(array: Any) -> str:
    return f"{array.dtype.name}[{','.join(map(str, array.shape))}]"
