"""What other implementations of the paper get wrong, each held against our public API.

One test for each fault that was found in them; none needs PyTorch.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sasa_jax
from sasa_jax.models import Variables, apply, split
from tests.parity.common import random_variables

SMALL = {
    "num_classes": 5,
    "blocks": (1, 1, 1, 1),
    "width": 0.125,
    "num_heads": 2,
    "window": 3,
    "attention_groups": (1, 2),
}
LAYER = "group2/block1"

# Compiled, which for whole networks is faster than one operation after another.
forward = jax.jit(apply, static_argnums=0, static_argnames="return_attention")
attend = jax.jit(sasa_jax.local_attention, static_argnames="window")
attention_weights = jax.jit(
    sasa_jax.local_attention_weights, static_argnames=("window", "boundary")
)


def random(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def network(**overrides: Any) -> tuple[nnx.GraphDef, Variables]:
    """A small network, its stem and first two groups attention, with random variables."""
    graphdef, shapes = split(
        nnx.eval_shape(
            lambda: sasa_jax.create_model("sa_resnet26", rngs=nnx.Rngs(0), **SMALL | overrides)
        )
    )
    return graphdef, jax.tree.map(jnp.float32, random_variables(shapes, seed=0))


def attention_maps(graphdef: nnx.GraphDef, variables: Variables, images: jax.Array) -> dict:
    (_, maps), _ = forward(graphdef, variables, images, return_attention=True)
    return maps


def difference(a: jax.Array, b: jax.Array) -> jax.Array:
    """The largest change of each head's map, [N]; weights are [B, H, W, N, K, K]."""
    return jnp.abs(a - b).max((0, 1, 2, 4, 5))


# Fault: a softmax per channel; q k is never summed over the head's channels.


def test_number_of_heads_changes_the_output() -> None:
    query, key, value = random(0, 3, 1, 6, 5, 8)

    def output(heads: int) -> jax.Array:
        split_heads = [x.reshape(1, 6, 5, heads, 8 // heads) for x in (query, key, value)]
        return attend(*split_heads, window=3).reshape(1, 6, 5, 8)

    # With 8 heads of one channel the softmax *is* per channel: what the fault always computes.
    outputs = {heads: output(heads) for heads in (1, 2, 4, 8)}
    for fewer, more in ((1, 2), (2, 4), (4, 8)):
        assert jnp.abs(outputs[fewer] - outputs[more]).max() > 0.1


def test_number_of_heads_changes_the_network() -> None:
    """Without tables, the same variables fit any number of heads."""
    images = random(1, 1, 32, 32, 3)
    graphdef, variables = network(position="none", num_heads=2)
    other, shapes = network(position="none", num_heads=4)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables)
    a, b = forward(graphdef, variables, images)[0], forward(other, variables, images)[0]
    assert jnp.abs(a - b).max() > 1e-2


# Fault: all heads summed into one attention map.


def test_heads_have_different_maps() -> None:
    maps = attention_maps(*network(num_heads=4), random(1, 1, 32, 32, 3))
    assert maps.keys() == {"stem", "group1/block1", LAYER}
    for path, weights in maps.items():
        heads = jnp.moveaxis(weights, 3, 0)
        for one, another in zip(heads, jnp.roll(heads, 1, axis=0), strict=True):
            assert jnp.abs(one - another).max() > 0.02, path


# Fault: the two tables laid over all channels before the heads are split, so that a head sees rows
# or columns only.


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("table", ["row_embedding", "column_embedding"])
def test_each_head_moves_with_both_tables(table: str, per_head: bool) -> None:
    query, key = random(0, 2, 1, 5, 6, 8, 4)
    shape = (3, 8, 2) if per_head else (3, 2)
    tables = {"row_embedding": random(1, *shape), "column_embedding": random(2, *shape)}
    before = attention_weights(query, key, **tables, window=3)
    tables[table] += random(3, *shape)
    after = attention_weights(query, key, **tables, window=3)
    assert difference(before, after).min() > 0.1


@pytest.mark.parametrize("table", ["row_embedding", "column_embedding"])
def test_each_head_of_a_network_moves_with_both_tables(table: str) -> None:
    images = random(1, 1, 32, 32, 3)
    graphdef, variables = network(num_heads=4)
    before = attention_maps(graphdef, variables, images)
    for path in ("stem", LAYER):
        moved = jax.tree.map(lambda x: x, variables)
        layer = moved["params"]
        for name in path.split("/"):
            layer = layer[name]
        layer = layer if path == "stem" else layer["spatial"]
        layer[table] = layer[table] + random(2, *layer[table].shape)
        after = attention_maps(graphdef, moved, images)
        assert difference(before[path], after[path]).min() > 0.05, path


# Fault: the mask inverted at the border, all probability on the padding.


def outside(height: int, width: int, window: int) -> np.ndarray:
    """[H, W, K, K], true where the window's slot lies outside the image."""

    def axis(size: int) -> np.ndarray:
        position = np.arange(size)[:, None] + np.arange(window) - window // 2
        return (position < 0) | (position >= size)

    return axis(height)[:, None, :, None] | axis(width)[None, :, None, :]


@pytest.mark.parametrize("window", [3, 9])
def test_masked_padding_holds_exactly_nothing(window: int) -> None:
    query, key = random(0, 2, 2, 4, 6, 2, 4)
    tables = random(1, 2, window, 2)
    weights = attention_weights(query, key, *tables, window=window, boundary="mask")
    weights = weights.transpose(0, 3, 1, 2, 4, 5)
    padding = outside(4, 6, window)
    assert padding.any() and not padding.all()
    assert (weights[:, :, padding] == 0).all()
    assert (weights[:, :, ~padding] > 0).all()
    np.testing.assert_allclose(weights.sum((-2, -1)), 1, rtol=1e-6)


def test_zero_boundary_keeps_padding_in_the_softmax() -> None:
    """The other reading of the border: a slot outside has key 0, so the logit q . r."""
    query, key = random(0, 2, 1, 3, 3, 1, 4)
    row, column = random(1, 2, 3, 2)
    weights = attention_weights(query, key, row, column, window=3)
    # Offsets (-1, -1) and (-1, 1) of the first pixel are both outside; their ratio is exact.
    logits = [jnp.dot(query[0, 0, 0, 0, 2:], column[t]) for t in (0, 2)]
    ratio = weights[0, 0, 0, 0, 0, 0] / weights[0, 0, 0, 0, 0, 2]
    np.testing.assert_allclose(ratio, jnp.exp(logits[0] - logits[1]), rtol=1e-5)


def test_masked_padding_in_a_network() -> None:
    maps = attention_maps(*network(boundary="mask"), random(1, 1, 64, 32, 3))
    weights = maps["group1/block1"].transpose(0, 3, 1, 2, 4, 5)
    assert (weights[:, :, outside(16, 8, 3)] == 0).all()


# Fault: the average pool at the end of the block, a sliding window in the stem.


def test_pool_comes_right_after_the_attention() -> None:
    """group2/block1 attends at the input's resolution; all that follows is at the output's."""
    graphdef, variables = network()
    model = nnx.merge(graphdef, variables["params"], variables["batch_stats"])
    block = model.group2.block1
    x = random(0, 2, 8, 12, block.conv1.in_features)
    y, weights = block(x, train=False, return_weights=True)
    assert weights.shape[1:3] == (8, 12)

    attended = block.spatial(nnx.relu(block.bn1(block.conv1(x), train=False)))
    pooled = attended.reshape(2, 4, 2, 6, 2, -1).mean((2, 4))
    expected = block.bn3(block.conv3(nnx.relu(block.bn2(pooled, train=False))), train=False)
    shortcut = block.shortcut_bn(block.shortcut_conv(x), train=False)
    np.testing.assert_allclose(y, nnx.relu(expected + shortcut), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("values", ["spatial", "plain"])
def test_stem_output_depends_on_its_block_alone(values: str) -> None:
    graphdef, variables = network(stem_values=values)
    model = nnx.merge(graphdef, variables["params"], variables["batch_stats"])
    images = random(0, 1, 12, 16, 3)
    before = model.stem(images, train=False)
    assert before.shape[:3] == (1, 3, 4)
    for a, b in ((4, 8), (7, 11)):  # opposite corners of block (1, 2)
        after = model.stem(images.at[0, a, b].add(3.0), train=False)
        change = np.array(jnp.abs(after - before).max(-1)[0])
        assert change[1, 2] > 1e-2
        change[1, 2] = 0
        assert change.max() < 1e-5


# Fault: the stem's embeddings absolute over the image.


@pytest.mark.parametrize("values", ["spatial", "plain"])
def test_stem_is_equivariant_to_shifts_by_a_block(values: str) -> None:
    graphdef, variables = network(stem_values=values)
    model = nnx.merge(graphdef, variables["params"], variables["batch_stats"])
    images = random(0, 1, 12, 16, 3)
    output = model.stem(images, train=False)
    for axis in (1, 2):
        shifted = model.stem(jnp.roll(images, 4, axis), train=False)
        np.testing.assert_allclose(shifted, jnp.roll(output, 1, axis), rtol=1e-5, atol=1e-5)
