"""The two passes over the tiles of a grid step, as Pallas kernels.

Operands, outputs and scratch come by name. Each pass takes its tiles through three stages, which
hand on to one another through the tile's slot of the scratch: products that make the logits, the
softmax, products with its result.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from sasa_jax.ops.local_attention.tpu_matrix.geometry import LANES, Geometry
from sasa_jax.ops.local_attention.tpu_matrix.maps import clear, read, write
from sasa_jax.ops.local_attention.tpu_matrix.tiles import Place, Tiles, dot, pipeline

Refs = dict[str, jax.Ref]
IMAGES = ("query", "key", "value")
Scratch = dict[str, tuple[tuple[int, ...], jnp.dtype]]  # shape and dtype by name


def forward(geo: Geometry, operands: Refs, outputs: Refs, scratch: Refs) -> None:
    """Writes "output", of the images' shape."""
    dtype = operands["query"].dtype
    tiles = Tiles(geo, operands, scratch)
    _read(geo, operands, scratch)

    def logits(place: Place) -> None:
        scratch["logits"][place.slot] = tiles.logits(place, tiles.stack("query", place))

    def softmax(place: Place) -> None:
        weights = _softmax(scratch["logits"][place.slot])
        scratch["weights_t"][place.slot] = weights.T.astype(dtype)

    def output(place: Place) -> None:
        value = tiles.keys("value", place)
        tiles.put("output", place, dot(scratch["weights_t"][place.slot], value, (1, 0), dtype))

    pipeline(geo, logits, softmax, output, ahead=(8, 3))
    write(geo, scratch["output"], outputs["output"], 0)


def backward(geo: Geometry, operands: Refs, outputs: Refs, scratch: Refs) -> None:
    """Writes the cotangents of the images and of the table, by the operands' names; or "packed",
    those of query, key and value, [images, H, W, 3 C], a part of it for each group."""
    dtype = operands["query"].dtype
    tiles = Tiles(geo, operands, scratch)
    _read(geo, operands, scratch)
    for name in ("key_cotangent", "value_cotangent"):
        clear(scratch[name])
    if tiles.table is not None:
        scratch["own_tables"][...] = tiles.own_tables().astype(dtype)
        outputs["table"][...] = jnp.zeros(outputs["table"].shape, jnp.float32)

    def logits(place: Place) -> None:
        scratch["logits"][place.slot] = tiles.logits(place, tiles.stack("query", place))
        value, cotangent = tiles.keys("value", place), tiles.stack("cotangent", place)
        scratch["weights_cotangent"][place.slot] = dot(value, cotangent, (1, 1), dtype)

    def softmax(place: Place) -> None:
        weights = _softmax(scratch["logits"][place.slot])
        scratch["weights"][place.slot] = weights.astype(dtype)
        cotangent = scratch["weights_cotangent"][place.slot]
        mean = jnp.sum(weights * cotangent, axis=0, keepdims=True)
        logits = weights * (cotangent - mean)
        if geo.options.scale != 1:
            logits *= geo.options.scale
        scratch["logits_cotangent"][place.slot, : geo.keys] = logits.astype(dtype)
        scratch["logits_cotangent_t"][place.slot] = logits.T.astype(dtype)
        if tiles.table is not None:
            relative = tiles.relative(place, logits)
            scratch["logits_cotangent"][place.slot, geo.keys :] = relative.astype(dtype)
            scratch["relative_t"][place.slot] = tiles.by_query(relative).astype(dtype)

    def cotangents(place: Place) -> None:
        query, cotangent = tiles.stack("query", place), tiles.stack("cotangent", place)
        weights, logits = (scratch[x][place.slot] for x in ("weights", "logits_cotangent"))
        tiles.add("value_cotangent", place, dot(weights, cotangent, (1, 0), dtype))
        of_keys = dot(logits, query, (1, 0), dtype)
        if "key" in operands:
            tiles.add("key_cotangent", place, of_keys[: geo.keys])
            logits_t, key = scratch["logits_cotangent_t"][place.slot], tiles.keys("key", place)
            tiles.put("query_cotangent", place, dot(logits_t, key, (1, 0), dtype))
        if tiles.table is not None:
            outputs["table"][0] += of_keys[geo.keys :]
            relative = scratch["relative_t"][place.slot]
            found = dot(relative, scratch["own_tables"][...], (1, 0), dtype)
            found = found.reshape(scratch["query_cotangent"][place.queries(geo)].shape)
            if "key" in operands:
                found += scratch["query_cotangent"][place.queries(geo)]
            scratch["query_cotangent"][place.queries(geo)] = found

    pipeline(geo, logits, softmax, cotangents, ahead=(6, 3))
    for name, block in _cotangent_blocks(geo, outputs).items():
        write(geo, scratch[f"{name}_cotangent"], block, _reach(geo, name))


def _cotangent_blocks(geo: Geometry, outputs: Refs) -> Refs:
    """Those of the group's images."""
    if "packed" not in outputs:
        return {name: block for name, block in outputs.items() if name != "table"}
    packed = outputs["packed"]
    own = pl.program_id(1) * geo.lanes
    places = ((name, index * packed.shape[-1] // 3) for index, name in enumerate(IMAGES))
    return {
        name: packed.at[:, :, :, pl.ds(pl.multiple_of(place + own, LANES), geo.lanes)]
        for name, place in places
    }


def _read(geo: Geometry, operands: Refs, scratch: Refs) -> None:
    """Copies the blocks into their maps."""
    for name in operands:
        if name != "table":
            read(geo, operands[name], scratch[name], _reach(geo, name))


def _reach(geo: Geometry, name: str) -> int:
    """How far from the corner of its map an image begins."""
    return geo.options.window // 2 if name in ("key", "value") else 0


def _softmax(logits: jax.Array) -> jax.Array:
    """Over the rows."""
    weights = jnp.exp(logits - logits.max(axis=0, keepdims=True))
    return weights * (1 / weights.sum(axis=0, keepdims=True))


def forward_scratch(geo: Geometry, dtype: jnp.dtype) -> Scratch:
    """What `forward` needs besides blocks."""
    return {
        "query": (geo.query_map, jnp.float32),
        "key": (geo.key_map, jnp.float32),
        "value": (geo.key_map, jnp.float32),
        "output": (geo.query_map, jnp.float32),
        "shifts": (Tiles.shifts_shape(geo), jnp.float32),
        "logits": ((geo.slots, geo.keys, geo.stacked), jnp.float32),
        "weights_t": ((geo.slots, geo.stacked, geo.keys), dtype),
    }


def backward_scratch(geo: Geometry, dtype: jnp.dtype) -> Scratch:
    """What `backward` needs besides blocks."""
    offsets = 2 * geo.offsets
    return {
        "query": (geo.query_map, jnp.float32),
        "key": (geo.key_map, jnp.float32),
        "value": (geo.key_map, jnp.float32),
        "cotangent": (geo.query_map, jnp.float32),
        "query_cotangent": (geo.query_map, jnp.float32),
        "key_cotangent": (geo.key_map, jnp.float32),
        "value_cotangent": (geo.key_map, jnp.float32),
        "shifts": (Tiles.shifts_shape(geo), jnp.float32),
        "own_tables": ((geo.heads * offsets, geo.lanes), dtype),
        "logits": ((geo.slots, geo.keys, geo.stacked), jnp.float32),
        "weights": ((geo.slots, geo.keys, geo.stacked), dtype),
        "weights_cotangent": ((geo.slots, geo.keys, geo.stacked), jnp.float32),
        "logits_cotangent": ((geo.slots, geo.keys + offsets, geo.stacked), dtype),
        "logits_cotangent_t": ((geo.slots, geo.stacked, geo.keys), dtype),
        "relative_t": ((geo.slots, geo.queries, geo.heads * offsets), dtype),
    }


SCRATCH = {forward: forward_scratch, backward: backward_scratch}
