"""Several devices: each attends to its own images, and nothing but the tables' gradients is sent.

In a file of its own because it sets a context mesh.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from .cases import FAST_COMPILE, attend_with, every

BATCH, WINDOW = 8, 5


def arguments(batch: int = BATCH) -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 6)
    images = ("query", "key", "value", "cotangent")
    shapes = {name: (batch, 5, 6, 2, 4) for name in images}
    shapes |= {"row_embedding": (WINDOW, 2), "column_embedding": (WINDOW, 2)}
    return {n: jax.random.normal(k, shapes[n]) for n, k in zip(shapes, keys, strict=True)}


@partial(jax.jit, static_argnums=0, compiler_options=FAST_COMPILE)
def run(implementation: str, cotangent: jax.Array, **inputs: jax.Array) -> dict:
    """Output and gradients."""

    def attend(inputs: dict) -> jax.Array:
        inputs = {"key": None, **inputs}
        return attend_with(implementation, **inputs, window=WINDOW, boundary="mask")

    output, transpose = jax.vjp(attend, inputs)
    return {"output": output, **transpose(cotangent)[0]}


def spread(inputs: dict[str, jax.Array], mesh: Mesh) -> dict[str, jax.Array]:
    """Images over all axes of the mesh, tables on every device."""
    return {
        name: jax.device_put(x, NamedSharding(mesh, P(mesh.axis_names) if x.ndim == 5 else P()))
        for name, x in inputs.items()
    }


@every
@pytest.mark.parametrize("shape", [(4,), (2, 2)], ids=["4", "2x2"])
def test_same_numbers_as_one_device(shape: tuple[int, ...], implementation: str) -> None:
    inputs = arguments()
    expected = run(implementation, **inputs)
    names = ("data", "more")[: len(shape)]
    mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))
    with jax.set_mesh(mesh):
        step = run.lower(implementation, **spread(inputs, mesh)).compile()
        got = step(**spread(inputs, mesh))
    # float32, sums over pixels in another order.
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=2e-5, atol=2e-5, err_msg=name)
    program = step.as_text()
    assert "all-reduce" in program
    assert not [op for op in ("all-gather", "all-to-all", "collective-permute") if op in program]


def test_a_batch_that_does_not_divide_still_runs() -> None:
    inputs = arguments(batch=3)
    expected = run("rows", **inputs)
    with jax.set_mesh(jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))):
        got = run("rows", **inputs)
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=2e-5, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("left_out", [["key"], ["row_embedding", "column_embedding"]], ids=str)
@every
def test_one_term_alone(implementation: str, left_out: list[str]) -> None:
    inputs = {name: x for name, x in arguments().items() if name not in left_out}
    expected = run(implementation, **inputs)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        got = run(implementation, **spread(inputs, mesh))
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=2e-5, atol=2e-5, err_msg=name)


@every
@pytest.mark.parametrize("check_vma", [True, False])
def test_inside_a_shard_map(check_vma: bool, implementation: str) -> None:
    """The caller's own shard_map: called straight, and replicated tables get summed gradients."""
    if check_vma and implementation.startswith("tpu_"):
        pytest.skip("Pallas' interpreter fails under check_vma; test_tpu_compile.py has this case")
    inputs = arguments()
    cotangent = inputs.pop("cotangent")
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    specs = {name: P("data") if x.ndim == 5 else P() for name, x in inputs.items()}

    def loss(inputs: dict, cotangent: jax.Array, mesh: Mesh | None) -> jax.Array:
        def attend(inputs: dict) -> jax.Array:
            return attend_with(implementation, **inputs, window=WINDOW)

        if mesh is not None:
            attend = jax.shard_map(
                attend, mesh=mesh, in_specs=(specs,), out_specs=P("data"), check_vma=check_vma
            )
        return jnp.sum(attend(inputs) * cotangent)

    gradient = jax.jit(jax.grad(loss), static_argnums=2, compiler_options=FAST_COMPILE)
    expected, got = gradient(inputs, cotangent, None), gradient(inputs, cotangent, mesh)
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=2e-5, atol=2e-5, err_msg=name)
