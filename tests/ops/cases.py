"""Random cases of local attention, shared by every suite that compares two forms of it."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sasa_jax.ops.local_attention import local_attention, local_attention_packed
from sasa_jax.ops.local_attention.checks import checked_options
from sasa_jax.ops.local_attention.contract import Problem
from sasa_jax.ops.local_attention.registry import IMPLEMENTATIONS

# Compiler options for programs that run once: optimising them would be most of the time. They are
# stricter, too: a value computed twice, in two fusions, may round differently in each, as on
# accelerators; code that needs the two bitwise equal fails here.
FAST_COMPILE = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


PACKED = "_packed"  # after a name: with queries, keys and values in one array


def implementations(dtype: str) -> list[str]:
    """The names, for `attend_with`, of those that take a dtype and run on this machine.

    gpu_triton does on a GPU, and in Triton's interpreter where TRITON_INTERPRET is 1. An
    implementation that reads one array in place is there a second time.
    """
    problem = Problem(
        jax.default_backend(), jnp.dtype(dtype), (1, 8, 8, 2, 8), checked_options(7, "zero", None)
    )
    found = {name: one for name, one in IMPLEMENTATIONS.items() if one.refuses(problem) is None}
    packed = [name + PACKED for name, one in found.items() if one.attend_packed is not None]
    return [*found, *packed]


def attend_with(
    implementation: str | None,
    query: jax.Array,
    key: jax.Array | None,
    value: jax.Array,
    row_embedding: jax.Array | None = None,
    column_embedding: jax.Array | None = None,
    **options,
) -> jax.Array:
    """`local_attention` by one of `implementations`."""
    name = implementation and implementation.removesuffix(PACKED)
    tables = row_embedding, column_embedding
    if name == implementation:
        return local_attention(query, key, value, *tables, **options, implementation=name)
    if key is None:
        pytest.skip("three arrays in one: there is always a key")
    packed = jnp.stack([query, key, value], axis=3)
    return local_attention_packed(packed, *tables, **options, implementation=name)


# A test for each that runs here. tpu_lanes takes half a minute to compile for the interpreter; few
# channels, as tests have, tpu_matrix takes apart: test_tpu_packed.py has what it reads in place.
SLOW = ("tpu_lanes", "tpu_lanes_packed", "tpu_matrix_packed")
every = pytest.mark.parametrize(
    "implementation",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else [])
        for name in implementations("float32")
    ],
)


@dataclass(frozen=True)
class Case:
    """One problem: shapes and options of `local_attention`, and the seed of its numbers."""

    batch: int
    height: int
    width: int
    heads: int
    dim: int  # of one head
    window: int
    boundary: str
    scale: float | None
    per_head: bool  # tables [K, N, D/2] instead of [K, D/2]
    content: bool  # False: key=None
    embeddings: bool  # False: no tables
    seed: int

    def __str__(self) -> str:
        return f"case{self.seed}"

    @property
    def options(self) -> dict:
        """Keyword arguments for `local_attention`."""
        return {"window": self.window, "boundary": self.boundary, "scale": self.scale}


# The first cases are chosen, so that even a short list meets every corner; the rest are random.
_CORNERS = (
    # (batch, height, width, heads, dim, window, boundary, scale, per_head, content, embeddings)
    (1, 5, 9, 2, 4, 3, "zero", None, False, True, True),  # batch 1, ragged tiles
    (2, 3, 2, 1, 2, 9, "zero", None, False, True, True),  # window larger than the map
    (2, 3, 2, 8, 2, 9, "mask", None, True, True, True),
    (1, 6, 11, 3, 4, 7, "mask", 0.5, True, False, True),  # position alone
    (2, 11, 6, 4, 2, 5, "zero", None, False, False, True),
    (2, 7, 5, 2, 3, 5, "zero", None, False, True, False),  # content alone, odd head dimension
    (1, 1, 1, 2, 2, 7, "zero", 2.0, True, True, True),  # one pixel
    (3, 1, 10, 1, 6, 7, "mask", None, False, True, True),  # one row
    (2, 4, 4, 2, 4, 1, "zero", None, False, True, True),  # one-pixel window
)


def random_cases(count: int, seed: int = 0) -> Iterator[Case]:
    """Yields `count` cases, the same for the same `seed`; a longer list begins with a shorter one.

    Maps of 1 to 11 pixels a side, 1 to 8 heads, windows of 1 to 13 (so often larger than the map),
    both boundaries, shared and per-head tables, content or tables off (never both).
    """
    draw = random.Random(seed)
    for index in range(count):
        if index < len(_CORNERS):
            yield Case(*_CORNERS[index], seed=1000 * seed + index)
            continue
        term = draw.choice(("both", "both", "both", "position", "content"))
        yield Case(
            batch=draw.choice((1, 1, 2, 3)),
            height=draw.randint(1, 11),
            width=draw.randint(1, 11),
            heads=draw.choice((1, 2, 3, 4, 8)),
            dim=draw.choice((1, 3)) if term == "content" else draw.choice((2, 4, 6)),
            window=draw.choice((1, 3, 3, 5, 5, 7, 7, 9, 13)),
            boundary=draw.choice(("zero", "mask")),
            scale=draw.choice((None, None, 0.5, 1.7)),
            per_head=draw.random() < 0.5,
            content=term != "position",
            embeddings=term != "content",
            seed=1000 * seed + index,
        )


def make_inputs(case: Case, dtype: str = "float64") -> dict[str, np.ndarray | None]:
    """The case's arguments and an output cotangent, drawn in float64 and rounded to `dtype`.

    Returns:
      query, key, value, cotangent: [B, H, W, N, D]; row_embedding, column_embedding: [K, D/2] or
      [K, N, D/2]. What the case leaves out is None.
    """
    rng = np.random.default_rng(case.seed)
    image = (case.batch, case.height, case.width, case.heads, case.dim)
    table = (case.window, *([case.heads] if case.per_head else []), case.dim // 2)

    def normal(shape: tuple[int, ...]) -> np.ndarray:
        return rng.standard_normal(shape).astype(jnp.dtype(dtype))

    return {
        "query": normal(image),
        "key": normal(image) if case.content else None,
        "value": normal(image),
        "row_embedding": normal(table) if case.embeddings else None,
        "column_embedding": normal(table) if case.embeddings else None,
        "cotangent": normal(image),
    }
