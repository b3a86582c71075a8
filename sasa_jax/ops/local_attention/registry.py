"""The implementations by name, in order of preference, and the choice among them."""

from sasa_jax.checks import nearest
from sasa_jax.ops.local_attention.contract import Implementation, Problem
from sasa_jax.ops.local_attention.definition import definition
from sasa_jax.ops.local_attention.dense import dense
from sasa_jax.ops.local_attention.gpu_triton import gpu_triton, gpu_triton_packed
from sasa_jax.ops.local_attention.gpu_triton import refuses as triton_refuses
from sasa_jax.ops.local_attention.rows import rows
from sasa_jax.ops.local_attention.tpu_lanes import cuts as lanes_cuts
from sasa_jax.ops.local_attention.tpu_lanes import refuses as lanes_refuses
from sasa_jax.ops.local_attention.tpu_lanes import tpu_lanes
from sasa_jax.ops.local_attention.tpu_matrix import refuses as matrix_refuses
from sasa_jax.ops.local_attention.tpu_matrix import tpu_matrix, tpu_matrix_packed


def _off_tpu(problem: Problem) -> str | None:
    if problem.platform != "tpu":
        return f"written for TPU; on {problem.platform} it runs in an interpreter, slowly"
    return None


def _off_gpu(problem: Problem) -> str | None:
    if problem.platform != "gpu":
        return f"written for GPU; on {problem.platform} it runs only in an interpreter, for tests"
    return None


def _idle_lanes(problem: Problem) -> str | None:
    """128 images and 8 heads fill the vector unit; what is padded costs the same."""
    batch, heads = problem.shape[0], problem.shape[3]
    busy = batch * heads / (-(-batch // 128) * 128 * -(-heads // 8) * 8)
    if busy < 0.75:
        return f"{batch} images and {heads} heads would keep {busy:.0%} of the vector unit busy"
    return None


def _better_on_matrix_units(problem: Problem) -> str | None:
    """By static estimates for v5e: with 8 channels a head the vector unit takes about half the time
    of the matrix units, with 16 as long if a map's rows fit, and with more it takes longer."""
    _, height, width, _, dim = problem.shape
    if dim > 16:
        return f"heads of {dim} channels: above 16 the matrix units take less time"
    if dim > 8 and lanes_cuts(problem):
        return f"maps of {height}x{width} have to be cut: the matrix units take less time"
    return None


def _large_map(problem: Problem) -> str | None:
    """Dense was the fastest up to two windows' worth of pixels (measured on CPU)."""
    pixels, limit = problem.shape[1] * problem.shape[2], 2 * problem.options.window**2
    if pixels > limit:
        return f"{pixels} keys for every query; it pays up to twice the window's, {limit}"
    return None


IMPLEMENTATIONS: dict[str, Implementation] = {
    "tpu_lanes": Implementation(
        tpu_lanes,
        lanes_refuses,
        declines=lambda problem: (
            _off_tpu(problem) or _idle_lanes(problem) or _better_on_matrix_units(problem)
        ),
        attend_packed=tpu_lanes,
    ),
    "tpu_matrix": Implementation(
        tpu_matrix, matrix_refuses, declines=_off_tpu, attend_packed=tpu_matrix_packed
    ),
    "gpu_triton": Implementation(
        gpu_triton, triton_refuses, declines=_off_gpu, attend_packed=gpu_triton_packed
    ),
    "dense": Implementation(dense, declines=_large_map),
    "rows": Implementation(rows),
    "definition": Implementation(definition),
}


def choose(name: str | None, problem: Problem) -> Implementation:
    """The implementation named, or the first that neither refuses nor declines the problem.

    Raises:
      ValueError: there is none of this name.
      NotImplementedError: it refuses the problem.
    """
    if name is None:
        return IMPLEMENTATIONS[picked(problem)]
    if name not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation: got {name!r}, expected None or one of "
            f"{list(IMPLEMENTATIONS)}{nearest(name, IMPLEMENTATIONS)}"
        )
    reason = IMPLEMENTATIONS[name].refuses(problem)
    if reason is not None:
        raise NotImplementedError(
            f"implementation {name!r} cannot run this: {reason}. "
            "implementation=None takes one that can."
        )
    return IMPLEMENTATIONS[name]


def picked(problem: Problem) -> str:
    """The name of the implementation that is taken when none is named."""
    return next(name for name in IMPLEMENTATIONS if reason_against(name, problem) is None)


def reason_against(name: str, problem: Problem) -> str | None:
    """Why an implementation is not taken when none is named; None if it would do."""
    candidate = IMPLEMENTATIONS[name]
    return candidate.refuses(problem) or candidate.declines(problem)
