"""The weights that a new run begins with: of a classification run, an export, or of others."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from sasa_jax.hub import download, on_hub
from sasa_jax.models import Variables, model_options, shape_differences
from sasa_jax.models.pretrained import from_torch
from sasa_jax.tasks.image_task import given
from sasa_jax.training import Checkpoints, saved_step

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


# Of a folder that `--mode=export` wrote; timm's on the Hub have the second too.
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


def load_pretrained(
    key: str, source: str, model: Mapping[str, Any], wanted: Mapping[str, Any]
) -> Variables:
    """The weights and BN statistics of a classifier.

    Args:
        key: of the config, for messages.
        source: a run's folder, of whose newest checkpoint the averages are read; what
            `--mode=export --format=safetensors` wrote, also at hf://OWNER/NAME; or a .safetensors
            file, or repository there, with the names of torchvision or timm.
        model: the network's options, `config["model"]`.
        wanted: {"params", "batch_stats"} of the network, as shapes; of a detector's backbone, which
            has no "classifier".

    Returns:
        {"params", "batch_stats"}, NumPy arrays in the wanted dtypes; without "classifier" where the
        source has none, or one for another number of classes.

    Raises:
        ValueError: there is no checkpoint or no file, or it is of another network; the message
            names the first differences.
    """
    folder = download(source, (_CONFIG, _WEIGHTS)) if on_hub(source) else Path(source)
    file = folder if folder.suffix == ".safetensors" else folder / _WEIGHTS
    try:
        if file.is_file():
            found = _from_file(file, model)
        elif folder.is_dir():
            found = _from_run(folder, model)
        elif folder.is_file():
            raise ValueError(
                "it is no .safetensors file; a state dict of PyTorch becomes one with "
                "safetensors.torch.save_file"
            )
        else:
            raise ValueError("there is no such file or folder")
        wanted = {kind: dict(tree) for kind, tree in wanted.items()}
        classifiers = [tree["params"].pop("classifier", {}) for tree in (wanted, found)]
        _check_same(shape_differences(wanted, found, "here"))
    except (ValueError, OSError, SafetensorError) as error:
        raise ValueError(f"{key} {source}: {error}") from error
    if classifiers[0] and not shape_differences(*classifiers, "here"):
        wanted["params"]["classifier"], found["params"]["classifier"] = classifiers
    return jax.tree.map(lambda shape, x: np.asarray(x, shape.dtype), wanted, found)


def _from_file(file: Path, model: Mapping[str, Any]) -> Variables:
    _check_same(_option_differences(_exported_model(file.with_name(_CONFIG)) or model, model))
    tensors = load_file(file)
    options = given(model) | {"num_classes": len(tensors.get("fc.bias", ())) or None}
    try:
        return from_torch(tensors, options.pop("name"), **options)
    except ValueError as error:
        raise ValueError(f"{error}. Give the model of these weights in config.model") from error


def _exported_model(file: Path) -> dict[str, Any] | None:
    """config["model"] of an export of ours, None beside the weights of others."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return json.loads(file.read_text())["config"]["model"]
    return None


def _from_run(workdir: Path, model: Mapping[str, Any]) -> Variables:
    if not saved_step(workdir):
        raise ValueError(f"it holds neither a checkpoint nor {_WEIGHTS}")
    with Checkpoints(workdir, read_only=True) as checkpoints:
        step = checkpoints.latest_step()
        _check_same(_option_differences(checkpoints.config(step)["model"], model))
        averages = checkpoints.arrays(step)["averages"]
    return {kind: dict(averages[kind]) for kind in ("params", "batch_stats")}


def _option_differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    theirs, ours = _options(theirs), _options(ours)
    return [
        f"{key} is {theirs.get(key)!r} there and {ours.get(key)!r} here"
        for key in sorted(ours.keys() | theirs.keys())
        if key not in FREE_OPTIONS and theirs.get(key) != ours.get(key)
    ]


def _options(model: Mapping[str, Any]) -> dict[str, Any]:
    # A stored config has been JSON: lists for tuples.
    options = model_options(model["name"]) | given(model)
    del options["name"]
    return {key: list(v) if isinstance(v, tuple) else v for key, v in options.items()}


def _check_same(differences: list[str]) -> None:
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ValueError(
            f"it is another network: {'; '.join(differences[:3])}{more}. Give the model of these "
            "weights in config.model, or weights of this one"
        )
