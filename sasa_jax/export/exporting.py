"""Writes an export, checks it, and leaves nothing that is wrong."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sasa_jax.checks import check_choice
from sasa_jax.export import as_onnx, as_safetensors, as_savedmodel, as_stablehlo, as_torch
from sasa_jax.export.check import check
from sasa_jax.export.errors import ExportError, check_installed
from sasa_jax.export.folder import whole_or_nothing
from sasa_jax.export.serving import Network
from sasa_jax.tasks import open_task

# That an export is checked on: of the run's data or of noise, and at most of the given images.
IMAGES, MOST_IMAGES = 8, 64


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        write: writes it.
        modules: that writing and checking need, from the extra of that name.
        detection: whether detectors can be written too.
        refuses: why it cannot be written here, or None.
    """

    write: Callable[[Network, Path], None]
    modules: tuple[str, ...] = ()
    extra: str = ""
    detection: bool = True
    refuses: Callable[[], str | None] = lambda: None


FORMATS = {
    "safetensors": Format(as_safetensors.write),
    "torch": Format(as_torch.write, ("torch",), "torch", detection=False),
    "stablehlo": Format(as_stablehlo.write),
    "savedmodel": Format(
        as_savedmodel.write, ("tensorflow",), "export", refuses=as_savedmodel.refuses
    ),
    "onnx": Format(
        as_onnx.write, ("torch", "onnx", "onnxscript", "onnxruntime"), "onnx", detection=False
    ),
}


def usable(name: str) -> Format:
    """The format of that name.

    Raises:
        ValueError: there is none; the message suggests the nearest.
        ExportError: it cannot be written here; the message says what to install.
    """
    check_choice("--format", name, FORMATS)
    format = FORMATS[name]
    if reason := format.refuses():
        raise ExportError(reason)
    check_installed(format.modules, format.extra)
    return format


def export(predictor: Any, format: str, output: Path, *, images: Sequence[Any] = ()) -> str:
    """Writes a network to a folder, and checks it in its own runtime in a fresh process.

    Args:
        predictor: what `sasa_jax.load` gave.
        format: one of FORMATS.
        output: the folder. An export that is there is replaced, when the new one has passed.
        images: files to check on, of which the first 64 are taken; without any, the first images
            of the run's evaluation split, or noise where that is not here.

    Returns:
        What was written, and what the check found, for the screen.

    Raises:
        ExportError: it cannot be done, with what to do.
        CheckFailedError: what was written computes something else; it was removed.
    """
    chosen = usable(format)
    network = Network.of(predictor)
    if network.detects and not chosen.detection:
        others = ", ".join(name for name, other in FORMATS.items() if other.detection)
        raise ExportError(f"--format={format} is for classification; detection has {others}")
    examples, source = _examples(predictor, images)
    inputs = {"images": np.stack([example["image"] for example in examples])}
    if network.detects:
        inputs["sizes"] = np.stack([example["size"] for example in examples])
    with whole_or_nothing(output) as folder:
        chosen.write(network, folder)
        agreement = check(network, folder, format, inputs)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        sizes = [f"  {p.relative_to(folder)}  {p.stat().st_size / 1e3:,.0f} kB" for p in files]
    outputs = "logits and box codes" if network.detects else "logits"
    checked = (
        f"checked in a process of its own on {len(examples)} {source}: largest difference of "
        f"{outputs} from JAX {agreement}"
    )
    return "\n".join([f"{output}: step {network.step} as {format}", *sizes, checked])


def _examples(predictor: Any, images: Sequence[Any]) -> tuple[list[dict[str, np.ndarray]], str]:
    """Prepared images to check on, and what they are."""
    if images:
        given = [predictor.preprocess(image) for image in images[:MOST_IMAGES]]
        return given, "of the given images"
    try:
        split = open_task(predictor.config).data.evaluation
    except (ValueError, OSError):  # absent, or of a machine with other folders
        size, rng = predictor.image_size, np.random.default_rng(0)
        noise = rng.integers(0, 256, (IMAGES, size, size, 3), np.uint8)
        return [predictor.preprocess(image) for image in noise], "images of noise"
    number = min(IMAGES, len(split))
    images = [predictor.preprocess(split[index]["image"]) for index in range(number)]
    return images, f"images of {split.name} {split.split}"
