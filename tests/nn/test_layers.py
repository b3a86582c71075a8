"""What each layer promises by itself; equality with PyTorch is in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from sasa_jax.nn import AttentionStem, BatchNorm, LocalSelfAttention, sinusoidal_position
from sasa_jax.nn.spatial import halve, spatial_layer


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def test_batch_norm_groups_are_normalised_apart():
    x = normal(0, 6, 4, 4, 3) * 3 + 1
    grouped = BatchNorm(3, group_size=2, rngs=nnx.Rngs(0))
    y = grouped(x, train=True)
    for start in (0, 2, 4):
        alone = BatchNorm(3, rngs=nnx.Rngs(0))
        part = slice(start, start + 2)
        np.testing.assert_allclose(y[part], alone(x[part], train=True), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grouped.mean[...], 0.1 * x.mean(axis=(0, 1, 2)), rtol=1e-5)


def test_batch_norm_running_statistics_are_used_in_evaluation():
    bn = BatchNorm(3, decay=0.0, rngs=nnx.Rngs(0))
    x = normal(0, 8, 4, 4, 3) * 3 + 1
    trained = bn(x, train=True)
    np.testing.assert_allclose(bn(x, train=False), trained, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(trained.mean(axis=(0, 1, 2)), np.zeros(3), atol=1e-5)
    np.testing.assert_allclose(trained.std(axis=(0, 1, 2)), np.ones(3), atol=1e-4)


def test_batch_norm_statistics_are_float32_for_bfloat16_inputs():
    bn = BatchNorm(1, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    # The mean of 256 and 258 is 257, which bfloat16 does not have.
    x = jnp.array([256.0, 258.0], jnp.bfloat16).reshape(2, 1, 1, 1)
    y = bn(x, train=True)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(bn.mean[...], [0.1 * 257.0], rtol=1e-6)
    np.testing.assert_allclose(y.astype(jnp.float32).ravel(), [-1.0, 1.0], atol=0.01)


def test_batch_norm_group_must_divide_the_batch():
    with pytest.raises(ValueError, match="bn_group_size 4 does not divide the batch of 6"):
        BatchNorm(3, group_size=4, rngs=nnx.Rngs(0))(normal(0, 6, 2, 2, 3), train=True)


@pytest.mark.parametrize("group_size", [None, 2])
def test_batch_norm_on_four_devices_is_batch_norm_on_one(group_size):
    """Needs several devices: groups must not depend on how the batch is spread."""
    x = normal(0, 8, 4, 4, 3)

    @jax.jit
    def run(x):
        bn = BatchNorm(3, group_size=group_size, rngs=nnx.Rngs(0))
        return bn(x, train=True), bn.mean[...]

    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    spread = jax.device_put(x, NamedSharding(mesh, P("data")))
    for one, four in zip(run(x), run(spread), strict=True):
        np.testing.assert_allclose(one, four, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_takes_moments_from_elsewhere(train):
    def fresh():
        bn = BatchNorm(3, group_size=2, rngs=nnx.Rngs(0))
        bn.mean[...] = jnp.array([0.5, -1.0, 2.0])
        return bn

    x = normal(0, 4, 5, 3)
    expected, got = fresh(), fresh()
    centred = x - expected.mean[...].reshape(1, 1, 3)
    moments = centred.mean(axis=1), jnp.square(centred).mean(axis=1)
    y = got.with_moments(x, *moments, train=train)
    np.testing.assert_allclose(y, expected(x, train=train), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.mean[...], expected.mean[...], rtol=1e-6)
    np.testing.assert_allclose(got.var[...], expected.var[...], rtol=1e-6)


def test_sinusoidal_position_tells_every_place_apart():
    code = sinusoidal_position(6, 5, 8)
    assert code.shape == (6, 5, 8)
    flat = code.reshape(30, 8)
    distance = np.abs(flat[:, None] - flat[None]).sum(-1) + 10 * np.eye(30)
    assert distance.min() > 1e-3
    np.testing.assert_array_equal(code[2, 0, :4], code[2, 4, :4])  # the first half is the row
    np.testing.assert_array_equal(code[0, 3, 4:], code[5, 3, 4:])  # the second half the column
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        sinusoidal_position(2, 2, 6)


def test_attention_layer_without_position_ignores_order():
    """Inside a window that covers the map, shuffling the pixels shuffles the output."""
    layer = LocalSelfAttention(
        8, num_heads=2, window=7, position="none", boundary="mask", rngs=nnx.Rngs(0)
    )
    x = normal(0, 1, 4, 4, 8)
    order = np.random.default_rng(0).permutation(16)

    def shuffled(x):
        return x.reshape(1, 16, 8)[:, order].reshape(1, 4, 4, 8)

    np.testing.assert_allclose(layer(shuffled(x)), shuffled(layer(x)), rtol=1e-4, atol=1e-5)
    relative = LocalSelfAttention(8, num_heads=2, window=7, boundary="mask", rngs=nnx.Rngs(0))
    assert np.abs(relative(shuffled(x)) - shuffled(relative(x))).max() > 1e-2


def test_attention_layer_parameters_follow_the_options():
    def shapes(**options):
        layer = nnx.eval_shape(lambda: LocalSelfAttention(16, rngs=nnx.Rngs(0), **options))
        flat = nnx.to_flat_state(nnx.state(layer, nnx.Param))
        return {"/".join(path): leaf.shape for path, leaf in flat}

    dense = {f"{name}/kernel": (16, 16) for name in ("query", "key", "value")}
    tables = {"row_embedding": (7, 1), "column_embedding": (7, 1)}
    assert shapes() == dense | tables
    assert shapes(position="none") == dense
    assert shapes(per_head_embeddings=True)["row_embedding"] == (7, 8, 1)
    assert shapes(grouped_projections=True)["query/kernel"] == (8, 2, 2)
    assert "key/kernel" not in shapes(content=False)


def test_grouped_projections_start_with_the_variance_of_dense_ones():
    layer = LocalSelfAttention(512, num_heads=2, grouped_projections=True, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(layer.value.kernel[...].std(), 256**-0.5, rtol=0.02)


def test_stem_mixtures_are_a_distribution_over_places():
    stem = AttentionStem(16, batch_norm={}, mixtures=3, rngs=nnx.Rngs(0))
    mixture = stem.mixture_weights()
    assert mixture.shape == (4, 4, 3)
    np.testing.assert_allclose(mixture.sum(-1), np.ones((4, 4)), rtol=1e-6)
    assert np.ptp(mixture[..., 0]) > 0.1, "values must depend on the place in the block"


def test_stem_refuses_images_that_do_not_divide_into_blocks():
    stem = AttentionStem(16, batch_norm={}, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="multiples of 4, got 8x6"):
        stem(normal(0, 1, 8, 6, 3), train=False)


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 2), (1, 1)])
def test_halving_averages_the_pixels_that_are_there(size):
    x = normal(0, 2, *size, 3)
    y = np.asarray(halve(x))
    assert y.shape == (2, -(-size[0] // 2), -(-size[1] // 2), 3)
    for i, j in np.ndindex(y.shape[1:3]):
        there = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        np.testing.assert_allclose(y[:, i, j], there.mean(axis=(1, 2)), rtol=1e-5, atol=1e-6)


def test_attention_keeps_the_number_of_channels():
    with pytest.raises(ValueError, match="cannot make 8 of 4"):
        spatial_layer(4, 8, attention={}, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0))


def test_normalised_queries_and_keys_do_not_know_the_inputs_size():
    x = normal(0, 1, 5, 5, 16)
    layer = LocalSelfAttention(16, num_heads=2, query_key_norm="rms", rngs=nnx.Rngs(0))
    _, weights = layer(x, return_weights=True)
    _, larger = layer(30 * x, return_weights=True)
    np.testing.assert_allclose(weights, larger, rtol=1e-3, atol=1e-6)
    # The logits start out as large as without the norm on inputs of unit size.
    np.testing.assert_array_equal(layer.query_norm.scale[...], np.full(8, 0.25))
    plain = LocalSelfAttention(16, num_heads=2, rngs=nnx.Rngs(0))
    _, other = plain(x, return_weights=True)
    assert 0.5 < jnp.log(weights).std() / jnp.log(other).std() < 2
    assert jnp.abs(plain(30 * x, return_weights=True)[1] - other).max() > 0.1


def test_normalised_keys_are_finite_where_the_map_is_zero():
    layer = LocalSelfAttention(8, num_heads=2, query_key_norm="rms", rngs=nnx.Rngs(0))
    gradient = jax.grad(lambda x: layer(x).sum())(jnp.zeros((1, 4, 4, 8)))
    assert np.isfinite(gradient).all()
