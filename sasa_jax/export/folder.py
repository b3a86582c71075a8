"""An exported folder: config.json, which every format has, and the file of the weights."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from sasa_jax.data import MEAN_RGB, STD_RGB
from sasa_jax.export.errors import ExportError
from sasa_jax.export.serving import Network, float32_task
from sasa_jax.models import Variables
from sasa_jax.models.pretrained import fill, to_torch

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
VERSION = 1  # of the folder's layout

_CLASSIFICATION = (
    "uint8 RGB pixels of the whole photo, EXIF rotation ignored; `resize`, to S = image_size; then "
    "(pixel - mean) / std of each channel. Shrinking averages over areas (OpenCV's INTER_AREA), "
    "enlarging is cubic."
)
_DETECTION = (
    "uint8 RGB pixels of the whole photo, EXIF rotation ignored; scaled so that its long side is "
    "S = image_size, at the top left of an S x S square whose rest is filled with `padding`; then "
    "(pixel - mean) / std of each channel. Shrinking averages over areas (OpenCV's INTER_AREA), "
    "enlarging is cubic. Boxes are in pixels of the square, as top, left, bottom, right; `sizes` "
    "are height and width of the photo's part of it, rounded up."
)


def describe(network: Network, format: str) -> dict[str, Any]:
    """The content of config.json."""
    return {
        "format": format,
        "format_version": VERSION,
        "task": network.config["task"],
        "step": network.step,
        "class_names": list(network.class_names),
        "preprocessing": _preprocessing(network),
        "config": network.config,
    }


def _preprocessing(network: Network) -> dict[str, Any]:
    transform = network.task().eval_transform
    description = {"steps": _DETECTION if network.detects else _CLASSIFICATION}
    description |= {"image_size": transform.image_size}
    if not network.detects:
        fraction = getattr(transform, "crop_fraction", None)
        description["resize"] = (
            "the whole image to S x S, its aspect not kept"
            if fraction is None
            else f"the short side to S / {fraction:g}, then the centre S x S"
        )
    else:
        description["padding"] = [round(x) for x in MEAN_RGB]
    return description | {"mean": list(MEAN_RGB), "std": list(STD_RGB)}


def write_config(folder: Path, description: dict[str, Any]) -> None:
    """Writes config.json."""
    text = json.dumps(description, indent=2)
    (folder / CONFIG).write_text(text + "\n")


def write_weights(folder: Path, network: Network, format: str) -> None:
    """Writes model.safetensors: float32, under the names of `sasa_jax.models.pretrained`."""
    metadata = {"format": "pt", "sasa_jax": format, "step": str(network.step)}
    # "pt" tells readers that names and layouts are PyTorch's.
    save_file(to_torch(network.variables), folder / WEIGHTS, metadata=metadata)


def read_safetensors(folder: Path) -> tuple[dict[str, Any], tuple[str, ...], int, Variables]:
    """Reads what --format=safetensors or torch wrote; nothing that is stored is executed.

    Returns:
        The run's config, the class names in the order of the logits, the step of the training, and
        {"params", "batch_stats"}, float32 NumPy arrays.

    Raises:
        ExportError: the folder holds no such export, or one that is damaged; says what.
    """
    description = read_config(folder)
    weights = folder / WEIGHTS
    if not weights.is_file():
        format = description["format"]
        raise ExportError(
            f"{folder} holds no {WEIGHTS}: it is an export as {format}. Only --format=safetensors "
            "and torch can be loaded back"
        )
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise ExportError(f"{weights} is damaged: {error}. Export again") from error
    names = tuple(description["class_names"])
    try:
        shapes = float32_task(description["config"], names).shapes
        variables = fill(shapes, tensors, str(weights))
    except (KeyError, TypeError, ValueError) as error:
        what = f"{folder / CONFIG} lacks {error}" if isinstance(error, KeyError) else error
        raise ExportError(f"{what}. Export again, with this version") from error
    return description["config"], names, description["step"], variables


def read_config(folder: Path) -> dict[str, Any]:
    """The content of config.json.

    Raises:
        ExportError: there is none, or it is not one of ours.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ExportError(f"{folder} is no exported folder: it has no {CONFIG}")
    try:
        description = json.loads(path.read_text())
        version = description["format_version"]
        missing = {"format", "class_names", "step", "config"} - description.keys()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{path} is damaged, or not of an export of sasa_jax") from error
    if version != VERSION or missing:
        raise ExportError(
            f"{path} has version {version!r} of the layout and lacks {sorted(missing)}; this "
            f"version of sasa_jax reads {VERSION}. Export again"
        )
    return description


@contextlib.contextmanager
def whole_or_nothing(output: Path) -> Iterator[Path]:
    """A folder beside `output` that takes its place at the end; after an error it is removed.

    An older export at `output` is replaced.

    Raises:
        ExportError: `output` holds something else, or cannot be written.
    """
    if output.exists() and not (output.is_dir() and _ours_or_empty(output)):
        raise ExportError(
            f"--output {output} holds something that is no export: give another or a new folder"
        )
    partial = output.with_name(f".{output.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        raise ExportError(f"--output {output} cannot be written to: {error.strerror}") from error
    try:
        yield partial
        if output.exists():
            shutil.rmtree(output)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _ours_or_empty(folder: Path) -> bool:
    if not any(folder.iterdir()):
        return True
    with contextlib.suppress(ExportError):
        read_config(folder)
        return True
    return False
