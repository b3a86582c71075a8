"""Each error names the argument, what it got and what is allowed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sasa_jax import local_attention, local_attention_weights
from sasa_jax.ops.local_attention import local_attention_packed, reads_packed

IMAGE = jnp.ones((1, 3, 4, 2, 4))
PACKED = jnp.ones((1, 3, 4, 3, 2, 4))
TABLE = jnp.ones((7, 2))
PER_HEAD = jnp.ones((7, 2, 2))
TABLES = {"row_embedding": TABLE, "column_embedding": TABLE}


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"window": 4}, ValueError, "window: got 4, expected an odd positive integer"),
        ({"window": -1}, ValueError, "window: got -1, expected an odd positive integer"),
        ({"window": 7.0}, TypeError, "window: got 7.0, expected an odd positive integer"),
        ({"boundary": "zeros"}, ValueError, "boundary: got 'zeros'.*did you mean 'zero'"),
        ({"scale": "1"}, TypeError, "scale: got str, expected None or a Python number"),
        ({"scale": jnp.ones(())}, TypeError, "scale: got .*, expected None or a Python number"),
        ({"scale": float("nan")}, ValueError, "scale: got nan, expected None or a finite"),
        ({"implementation": "row"}, ValueError, "implementation: got 'row'.*mean 'rows'"),
        ({"query": [1.0]}, TypeError, "query: got list, expected a JAX or NumPy array"),
        ({"value": None}, TypeError, "value: got NoneType, expected a JAX or NumPy array"),
        ({"query": np.ones(3, int)}, TypeError, "query: got dtype int64, expected one of float32"),
        ({"query": IMAGE[0]}, ValueError, r"query: got shape \(3, 4, 2, 4\), expected \[batch"),
        ({"key": IMAGE[:, 1:]}, ValueError, r"key: got shape .* the query's shape \(1, 3, 4, 2, 4"),
        ({"value": IMAGE[..., :2]}, ValueError, "value: got shape .* the query's shape"),
        ({"key": IMAGE.astype("bfloat16")}, TypeError, "key: got dtype bfloat16, .* float32"),
        ({"row_embedding": TABLE.astype("float16")}, TypeError, "row_embedding: got dtype float16"),
        ({"row_embedding": None}, ValueError, "row_embedding: got None while the other"),
        ({"column_embedding": None}, ValueError, "column_embedding: got None while the other"),
        ({"row_embedding": TABLE[1:]}, ValueError, r"row_embedding: got .*\(7, 2\) or .*\(7, 2, 2"),
        ({"row_embedding": PER_HEAD}, ValueError, "column_embedding: got .*shared or both per"),
        (
            {"key": None, "row_embedding": None, "column_embedding": None},
            ValueError,
            "key: got None without row_embedding and column_embedding",
        ),
        (
            {"query": IMAGE[..., :3], "key": IMAGE[..., :3], "value": IMAGE[..., :3]},
            ValueError,
            "query: got an odd head dimension 3, expected an even one",
        ),
    ],
)
def test_local_attention(changes: dict, error: type[Exception], message: str) -> None:
    arguments = {"query": IMAGE, "key": IMAGE, "value": IMAGE, **TABLES, **changes}
    with pytest.raises(error, match=message):
        local_attention(**arguments)


def test_an_implementation_that_refuses_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    from sasa_jax.ops.local_attention.contract import Implementation
    from sasa_jax.ops.local_attention.registry import IMPLEMENTATIONS

    kernel = Implementation(None, refuses=lambda problem: f"it needs a TPU, not {problem.platform}")
    monkeypatch.setitem(IMPLEMENTATIONS, "kernel", kernel)
    with pytest.raises(NotImplementedError, match="'kernel' cannot run this: it needs a TPU, not"):
        local_attention(IMAGE, IMAGE, IMAGE, **TABLES, implementation="kernel")


def test_weights_check_the_same() -> None:
    with pytest.raises(ValueError, match="window: got 2"):
        local_attention_weights(IMAGE, IMAGE, window=2)
    with pytest.raises(ValueError, match="key: got shape"):
        local_attention_weights(IMAGE, IMAGE[:, 1:])


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"packed": None}, TypeError, "packed: got NoneType, expected a JAX or NumPy array"),
        ({"packed": IMAGE}, ValueError, r"packed: got shape \(1, 3, 4, 2, 4\), expected \[batch"),
        ({"packed": PACKED[:, :, :, :2]}, ValueError, "packed: got shape .*each pixel's query"),
        ({"packed": PACKED[..., :3]}, ValueError, "an odd head dimension 3"),
        ({"row_embedding": TABLE[1:]}, ValueError, r"row_embedding: got .*\(7, 2\) or"),
        ({"row_embedding": TABLE.astype("float16")}, TypeError, "row_embedding: got dtype float16"),
        ({"window": 4}, ValueError, "window: got 4"),
        ({"implementation": "row"}, ValueError, "implementation: got 'row'.*mean 'rows'"),
    ],
)
def test_packed_checks_the_same(changes: dict, error: type[Exception], message: str) -> None:
    arguments = {"packed": PACKED, **TABLES, **changes}
    with pytest.raises(error, match=message):
        local_attention_packed(**arguments)
    if "window" in changes or "implementation" in changes:
        with pytest.raises(error, match=message):
            reads_packed(IMAGE.shape, IMAGE.dtype, **changes)


def test_tracers_are_checked_alike() -> None:
    with pytest.raises(ValueError, match="value: got shape"):
        jax.eval_shape(local_attention, IMAGE, IMAGE, IMAGE[:, 1:])
