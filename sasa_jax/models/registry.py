"""Networks by name."""

import inspect
from typing import Any

from flax import nnx

from sasa_jax.checks import nearest
from sasa_jax.models.resnet import ResNet

_BLOCKS = {26: (1, 2, 4, 1), 38: (2, 3, 5, 2), 50: (3, 4, 6, 3)}
_VARIANTS = {
    "resnet{}": dict(stem="conv", attention_groups=()),
    "sa_resnet{}": dict(stem="attention", attention_groups=(1, 2, 3, 4)),
    "sa_resnet{}_conv_stem": dict(stem="conv", attention_groups=(1, 2, 3, 4)),
}
_MODELS = {
    pattern.format(depth): dict(blocks=blocks, **variant)
    for pattern, variant in _VARIANTS.items()
    for depth, blocks in _BLOCKS.items()
}


def list_models() -> list[str]:
    """The names that `create_model` takes."""
    return list(_MODELS)


def model_options(name: str) -> dict[str, Any]:
    """Every option of the named model with its default; `create_model` takes them as overrides.

    Raises:
        ValueError: an unknown name; the message suggests the nearest.
    """
    if name not in _MODELS:
        raise ValueError(
            f"no model is named {name!r}{nearest(name, _MODELS)}; there are {', '.join(_MODELS)}"
        )
    parameters = inspect.signature(ResNet.__init__).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.name not in ("self", "rngs")}
    return defaults | _MODELS[name]


def create_model(name: str, *, rngs: nnx.Rngs, **overrides: Any) -> ResNet:
    """Builds the named network with random parameters.

    Args:
        name: one of `list_models()`. `resnet*` are convolutional, `sa_resnet*` are attention
            throughout, `sa_resnet*_conv_stem` keep the convolutional stem (paper, table 1).
        rngs: e.g. `nnx.Rngs(0)`.
        overrides: options of `ResNet`.

    Raises:
        ValueError: an unknown name or a value that is not allowed.
        TypeError: an unknown option; the message suggests the nearest.
    """
    options = model_options(name)
    for key in overrides:
        if key not in options:
            raise TypeError(
                f"{name} has no option {key!r}{nearest(key, options)}; "
                f"there are {', '.join(options)}"
            )
    return ResNet(**(options | overrides), rngs=rngs)
