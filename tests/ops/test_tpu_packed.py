"""One array of queries, keys and values on TPU, where it is read in parts: groups, tiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sasa_jax.ops.local_attention import local_attention_packed
from sasa_jax.ops.local_attention.tpu_lanes import call

from .cases import FAST_COMPILE


def assert_as_definition(shape: tuple[int, int, int, int, int], implementation: str) -> None:
    """Output and gradients, window 3, float32, for queries [B, H, W, N, D]."""
    batch, height, width, heads, dim = shape
    random = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    inputs = normal(batch, height, width, 3, heads, dim), *(normal(3, dim // 2) for _ in "rc")
    cotangent = normal(*shape)

    def both(implementation: str) -> tuple[jax.Array, ...]:
        def attend(*inputs: jax.Array) -> jax.Array:
            return local_attention_packed(
                *inputs, window=3, scale=dim**-0.5, implementation=implementation
            )

        output, transpose = jax.vjp(attend, *inputs)
        return output, *transpose(cotangent)

    got = jax.jit(both, static_argnums=0, compiler_options=FAST_COMPILE)(implementation)
    for found, expected in zip(got, both("definition"), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_two_groups_of_128_channels_share_a_block() -> None:
    assert_as_definition((2, 3, 5, 8, 32), "tpu_matrix")


@pytest.mark.slow  # half a minute
def test_tiles_add_to_their_neighbours_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call, "_tile", lambda *_, **__: 3)
    assert_as_definition((2, 3, 6, 8, 2), "tpu_lanes")
