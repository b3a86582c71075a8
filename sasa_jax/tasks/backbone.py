"""A detector's backbone from a classification run, or from weights that others trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file

from sasa_jax.models import model_options, shape_differences
from sasa_jax.models.pretrained import from_torch
from sasa_jax.tasks.image_task import given
from sasa_jax.training import Checkpoints, check_saved

# Options that may differ: they belong to the classifier, or change how and not what is computed.
FREE_OPTIONS = (
    "num_classes",
    "dtype",
    "param_dtype",
    "implementation",
    "bn_group_size",
    "bn_decay",
    "query_key_init_scale",
    "embedding_init_std",
    "zero_init_last_bn",
)


def load_backbone(
    source: Path, model: Mapping[str, Any], wanted: Mapping[str, Any]
) -> dict[str, Any]:
    """The weights and BN statistics of a classifier, without its last layer.

    Args:
        source: a run's folder, of whose newest checkpoint the averages are read; or a .safetensors
            file with the names of torchvision, timm or `--mode=export`.
        model: the backbone's options, `config["model"]`.
        wanted: {"params", "batch_stats"} of the backbone, as shapes.

    Returns:
        {"params", "batch_stats"}, NumPy arrays in the wanted dtypes.

    Raises:
        ValueError: there is no checkpoint or no file, or it is of another network; the message
            names the first differences.
    """
    if source.suffix == ".safetensors":
        found = _from_file(source, model)
    else:
        found = _from_run(source, model, wanted)
    return jax.tree.map(lambda shape, x: np.asarray(x, shape.dtype), dict(wanted), found)


def _from_file(file: Path, model: Mapping[str, Any]) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"backbone_from: there is no file {file}")
    options = given(model) | {"num_classes": None}
    try:
        return from_torch(load_file(file), options.pop("name"), **options)
    except ValueError as error:
        raise ValueError(
            f"backbone_from {file}: {error}. Give the model of these weights in config.model"
        ) from error


def _from_run(workdir: Path, model: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    check_saved(workdir)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        step = checkpoints.latest_step()
        theirs = _options(checkpoints.config(step)["model"])
        averages = checkpoints.arrays(step)["averages"]
    ours = _options(model)
    differences = [
        f"{key} is {theirs.get(key)!r} there and {ours.get(key)!r} here"
        for key in sorted(ours.keys() | theirs.keys())
        if key not in FREE_OPTIONS and theirs.get(key) != ours.get(key)
    ]
    found = {kind: dict(averages[kind]) for kind in wanted}
    found["params"].pop("classifier", None)
    differences += shape_differences(wanted, found, "here")
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ValueError(
            f"backbone_from {workdir} holds another network: {'; '.join(differences[:3])}{more}. "
            "Give the model of that run in config.model, or the run of this one"
        )
    return found


def _options(model: Mapping[str, Any]) -> dict[str, Any]:
    # A checkpoint's config has been JSON: lists for tuples.
    options = model_options(model["name"]) | given(model)
    del options["name"]
    return {key: list(v) if isinstance(v, tuple) else v for key, v in options.items()}
