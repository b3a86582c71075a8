"""Says which implementation of local attention is picked for a problem, and why not the others.

    python -m sasa_jax.ops.local_attention --explain --shape 56,56,8,8 --dtype bfloat16 \\
        --platform tpu
"""

import argparse

import jax
import jax.numpy as jnp

from sasa_jax.ops.local_attention.checks import BOUNDARIES, DTYPES, checked_options
from sasa_jax.ops.local_attention.contract import Problem
from sasa_jax.ops.local_attention.registry import IMPLEMENTATIONS, picked, reason_against


def main() -> None:
    problem = _problem()
    batch, height, width, heads, dim = problem.shape
    print(
        f"{batch} images of {height}x{width}, {heads} heads of {dim}, {problem.dtype.name}, "
        f"window {problem.options.window}, boundary {problem.options.boundary!r}, "
        f"on {problem.platform}:"
    )
    first = picked(problem)
    for name in IMPLEMENTATIONS:
        reason = reason_against(name, problem) or f"could run it; {first} comes first"
        print(f"  {name:12}{'picked' if name == first else reason}")


def _problem() -> Problem:
    parser = argparse.ArgumentParser(
        prog="python -m sasa_jax.ops.local_attention", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--explain", action="store_true", required=True)
    parser.add_argument(
        "--shape", type=_shape, required=True, metavar="H,W,N,D", help="height, width, heads, dim"
    )
    parser.add_argument("--batch", type=_positive, default=32, help="images a device (32)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--platform", choices=("cpu", "gpu", "tpu"), default=jax.default_backend())
    parser.add_argument("--window", type=int, default=7)
    parser.add_argument("--boundary", choices=BOUNDARIES, default="zero")
    given = parser.parse_args()
    try:
        options = checked_options(given.window, given.boundary, scale=None)
    except ValueError as error:
        parser.error(str(error))
    return Problem(given.platform, jnp.dtype(given.dtype), (given.batch, *given.shape), options)


def _shape(text: str) -> tuple[int, ...]:
    sizes = tuple(_positive(size) for size in text.split(","))
    if len(sizes) != 4:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected 4 sizes such as 56,56,8,8")
    return sizes


def _positive(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a positive integer")
    return int(text)


if __name__ == "__main__":
    main()
