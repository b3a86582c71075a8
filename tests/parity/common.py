"""What the parity tests share: random variables, and how far two results are apart."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def relative_error(actual: Any, expected: Any, small: float = 1e-11) -> float:
    """max |actual - expected| / max |expected|; absolute if `expected` is nowhere above `small`.

    By default that is where it is zero but for float64's rounding. Not finite is infinitely wrong.
    """
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"shapes {actual.shape} and {expected.shape}"
    if not (np.isfinite(actual).all() and np.isfinite(expected).all()):
        return math.inf
    scale = np.max(np.abs(expected))
    return float(np.max(np.abs(actual - expected)) / (scale if scale > small else 1.0))


def random_variables(shapes: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Float64 arrays for a tree of shapes: no zeros or ones, activations stay of order one."""
    rng = np.random.default_rng(seed)

    def draw(tree: Mapping[str, Any]) -> dict[str, Any]:
        return {name: leaf(name, tree[name]) for name in sorted(tree)}

    def leaf(name: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return draw(value)
        if name in ("scale", "var"):
            return rng.uniform(0.5, 1.5, value.shape)
        inputs = 1
        if name == "kernel":
            # A convolution's [K, K, C_in, C_out] sums over the window too.
            inputs = math.prod(value.shape[:-1]) if len(value.shape) == 4 else value.shape[-2]
        return rng.normal(0, 1 / math.sqrt(inputs), value.shape)

    return draw(shapes)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dict -> {dotted path: leaf}."""
    flat: dict[str, Any] = {}
    for name, leaf in tree.items():
        if isinstance(leaf, Mapping):
            flat |= flatten(leaf, f"{prefix}{name}.")
        else:
            flat[prefix + name] = leaf
    return flat
