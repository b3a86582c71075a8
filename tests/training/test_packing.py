"""A state as one vector: every type and shape, to the bit, and nothing else is taken for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from sasa_jax.training import digest
from sasa_jax.training.packing import differences, nested, pack, place, unpack

# Three bytes first, so that what follows is at odd addresses.
TREE = {
    "a": np.array([True, False, True]),
    "b": {"bfloat16": np.arange(5).astype(jnp.bfloat16), "empty": np.zeros((0, 3), np.float32)},
    "c": {"scalar": np.asarray(np.float32(-0.0)), "nan": np.full((2, 3), np.nan, np.float32)},
    "d": (np.arange(6, dtype=np.uint32).reshape(2, 3).T, np.int32(7) * np.ones((), np.int32)),
}


def test_what_is_packed_comes_back():
    arrays = unpack(*pack(TREE))
    assert digest(nested(arrays)) == digest(TREE)
    sharding = SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), TREE
    )
    assert differences(arrays, abstract) == []
    placed = place(arrays, abstract)
    assert jax.tree.structure(placed) == jax.tree.structure(TREE)
    assert digest(placed) == digest(TREE)
    abstract["a"] = jax.ShapeDtypeStruct((4,), jnp.int32)
    assert differences(arrays, abstract) == ["a was bool[3] and is int32[4]"]


@pytest.mark.parametrize("index", range(0, 69, 5))
def test_a_changed_byte_is_found(index):
    vector, table = pack(TREE)
    vector[index] ^= 1
    with pytest.raises(ValueError, match=f"1 of {len(table)} arrays are not those that were saved"):
        unpack(vector, table)


def test_a_table_that_does_not_fit_is_refused():
    vector, table = pack(TREE)
    with pytest.raises(ValueError, match="arrays are not those"):
        unpack(vector[:-1], table)
    with pytest.raises(ValueError, match="0 of 7 arrays"):
        unpack(np.append(vector, np.uint8(0)), table)
    # From others: no type of NumPy's makes an address of bytes.
    table["d/1"] |= {"dtype": "object", "shape": []}
    with pytest.raises((TypeError, ValueError)):
        unpack(vector, table)
