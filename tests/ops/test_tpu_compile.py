"""The TPU kernels compiled for real chips by libtpu: no TPU is needed, and nothing is run.

`make test-tpu` installs libtpu in an environment of its own.
"""

import importlib.util
import os
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sasa_jax import local_attention
from sasa_jax.nn import AttentionStem
from sasa_jax.ops.local_attention import local_attention_packed
from sasa_jax.ops.local_attention.workloads import RESNET50

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: make test-tpu"
)
CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}


@pytest.fixture(params=CHIPS)
def mesh(request: pytest.FixtureRequest) -> Mesh:
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # do not look for a TPU host's metadata
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # tests run in several processes
    topology = topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[request.param])
    return Mesh(np.array(topology.devices), ("data",), axis_types=(AxisType.Auto,))


def program(mesh: Mesh, shape: tuple[int, ...], dtype: str, window: int, **options) -> str:
    """The compiled gradient; `shape` is for one chip."""
    batch, *rest = shape
    image = jax.ShapeDtypeStruct(
        (batch * mesh.size, *rest), dtype, sharding=NamedSharding(mesh, P("data"))
    )
    table = jax.ShapeDtypeStruct((window, shape[-1] // 2), dtype, sharding=NamedSharding(mesh, P()))

    @jax.jit
    def gradients(*inputs: jax.Array) -> tuple[jax.Array, ...]:
        output, transpose = jax.vjp(
            lambda *inputs: local_attention(*inputs, window=window, **options), *inputs
        )
        return transpose(output)

    with jax.set_mesh(mesh):
        return gradients.lower(image, image, image, table, table).compile().as_text()


def assert_kernels(text: str) -> None:
    """Both passes are ours, and only the tables' gradients travel."""
    for name in ("local_attention_forward", "local_attention_backward"):
        assert name in text
    assert "all-reduce" in text
    assert not [op for op in ("all-gather", "all-to-all", "collective-permute") if op in text]


@pytest.mark.parametrize("workload", RESNET50, ids=lambda workload: workload.name)
def test_resnet50(workload, mesh: Mesh) -> None:
    assert_kernels(program(mesh, workload.shape(batch=8), "bfloat16", workload.window))


@pytest.mark.parametrize(
    "shape, dtype, window, boundary",
    [
        ((3, 9, 13, 3, 6), "float32", 5, "mask"),  # heads that fill no group, ragged tiles
        ((1, 80, 80, 8, 32), "bfloat16", 7, "zero"),  # RetinaNet's P3 and P7, one image
        ((1, 5, 5, 8, 32), "bfloat16", 7, "zero"),
        ((2, 28, 28, 8, 16), "bfloat16", 19, "mask"),
        ((2, 14, 14, 8, 16), "float32", 3, "zero"),
    ],
)
def test_corners(
    shape: tuple[int, ...], dtype: str, window: int, boundary: str, mesh: Mesh
) -> None:
    assert_kernels(program(mesh, shape, dtype, window, boundary=boundary, scale=0.5))


def test_inside_a_checked_shard_map(mesh: Mesh) -> None:
    image = jax.ShapeDtypeStruct((4 * mesh.size, 9, 9, 8, 8), jnp.bfloat16)
    table = jax.ShapeDtypeStruct((7, 4), jnp.bfloat16)
    specs = (P("data"), P("data"), P("data"), P(), P())

    @jax.jit
    def gradients(*inputs: jax.Array) -> tuple[jax.Array, ...]:
        attend = jax.shard_map(local_attention, mesh=mesh, in_specs=specs, out_specs=P("data"))
        output, transpose = jax.vjp(attend, *inputs)
        return transpose(output)

    shardings = [NamedSharding(mesh, spec) for spec in specs]
    inputs = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        for x, sharding in zip((image, image, image, table, table), shardings, strict=True)
    ]
    with jax.set_mesh(mesh):
        assert_kernels(gradients.lower(*inputs).compile().as_text())


def test_128_images_take_the_vector_unit(mesh: Mesh) -> None:
    text = program(mesh, (128, 9, 9, 8, 8), "bfloat16", 7)
    assert "local_attention_lanes_backward" in text and "all-gather" not in text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "shape, backward",
    [
        ((128, 9, 9, 8, 8), "local_attention_lanes_backward"),
        ((2, 14, 14, 8, 64), "local_attention_backward"),
    ],
)
def test_packed(shape: tuple[int, ...], backward: str, dtype: str, mesh: Mesh) -> None:
    """Queries, keys and values in one array, as are their gradients."""
    batch, height, width, heads, dim = shape
    shape = (batch * mesh.size, height, width, 3, heads, dim)
    image = jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P("data")))
    table = jax.ShapeDtypeStruct((7, dim // 2), dtype, sharding=NamedSharding(mesh, P()))

    @jax.jit
    def gradients(*inputs: jax.Array) -> tuple[jax.Array, ...]:
        output, transpose = jax.vjp(local_attention_packed, *inputs)
        return transpose(output)

    with jax.set_mesh(mesh):
        text = gradients.lower(image, table, table).compile().as_text()
    assert backward in text


def test_float16_falls_through(mesh: Mesh) -> None:
    text = program(mesh, (2, 9, 9, 2, 8), jnp.float16, 5)
    assert "local_attention_forward" not in text


@pytest.mark.parametrize(
    "shape, dtype, of_images, options",
    [
        ((2, 224, 224), "bfloat16", False, {"features": 64}),
        ((1, 640, 640), "float32", False, {"features": 64, "values": "plain"}),  # RetinaNet's
        ((3, 20, 36), "float32", True, {"features": 18, "num_heads": 3, "relative": False}),
        ((1, 64, 64), "bfloat16", True, {"features": 512, "num_heads": 16}),  # the most it takes
    ],
    ids=str,
)
def test_attention_stem(
    shape: tuple[int, ...], dtype: str, of_images: bool, options: dict, mesh: Mesh
) -> None:
    """One kernel each way: that for the parameters' gradients, or that for the images'."""
    stem = AttentionStem(
        **options, batch_norm={"group_size": shape[0]}, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0)
    )
    graph, *variables = nnx.split(stem, nnx.Param, ...)

    def abstract(x: jax.Array, spec: P) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    variables = jax.tree.map(partial(abstract, spec=P()), variables)
    images = jax.ShapeDtypeStruct((shape[0] * mesh.size, *shape[1:], 3), dtype)

    @jax.jit
    def gradients(variables: list[nnx.State], images: jax.Array):
        params, rest = variables

        def call(params: nnx.State, images: jax.Array) -> jax.Array:
            return nnx.merge(graph, params, rest, copy=True)(images, train=True)

        output, transpose = jax.vjp(call, params, images)
        return transpose(output)[of_images]

    with jax.set_mesh(mesh):
        text = gradients.lower(variables, abstract(images, P("data"))).compile().as_text()
    backward = "block_attention_backward" + "_image" * of_images
    kernels = set(re.findall(r"%(block_attention_\w+)", text))
    assert kernels == {"block_attention_forward", backward}
    assert not [op for op in ("all-gather", "all-to-all") if op in text]
