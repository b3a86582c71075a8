"""The implementations by name, in order of preference."""

from sasa_jax.ops.local_attention.contract import Implementation, Problem
from sasa_jax.ops.local_attention.definition import definition
from sasa_jax.ops.local_attention.dense import dense
from sasa_jax.ops.local_attention.halo import halo
from sasa_jax.ops.local_attention.tpu_matrix import refuses, tpu_matrix


def _small_map(problem: Problem) -> bool:
    """At most two windows' worth of pixels: where dense was faster than halo (measured on CPU)."""
    return problem.shape[1] * problem.shape[2] <= 2 * problem.options.window**2


def _on_tpu(problem: Problem) -> bool:
    return problem.platform == "tpu"


IMPLEMENTATIONS: dict[str, Implementation] = {
    "tpu_matrix": Implementation(tpu_matrix, refuses, suits=_on_tpu),
    "dense": Implementation(dense, suits=_small_map),
    "halo": Implementation(halo),
    "definition": Implementation(definition),
}
