"""Says what this installation can do: `python -m sasa_jax`."""

import importlib.util
import platform
import textwrap
from collections import Counter
from collections.abc import Iterator

import jax

import sasa_jax

PYTHON = {
    "sasa_jax.create_model(name, rngs=nnx.Rngs(0))": "a classifier with random parameters",
    "sasa_jax.create_retinanet({'name': ...}, ...)": "a detector",
    "sasa_jax.load('runs/digits')": "a trained network, from a run's folder or an export",
    "sasa_jax.local_attention(query, key, ...)": "the operator alone",
}
# Every module that runs as `python -m`; each explains itself with --help.
COMMANDS = {
    "sasa_jax.analysis.tables": "the paper's parameter and FLOPS cells beside ours",
    "sasa_jax.data.prepare": "prepares a data set of TensorFlow Datasets; extra data",
    "sasa_jax.detection.evaluate": "COCO's twelve numbers of a result file",
    "sasa_jax.explorer.figure": "attention figures of one image, PNG, SVG or PDF",
    "sasa_jax.ops.local_attention": "which implementation runs a problem, and why not another",
}
# What an extra adds, and the modules by which one sees that it is installed.
EXTRAS = {
    "gpu": ("CUDA and the kernel in Triton", ("jax_triton", "triton")),
    "tpu": ("TPUs", ("libtpu",)),
    "data": ("prepares data sets", ("tensorflow",)),
    "torch": ("export to PyTorch", ("torch",)),
    "onnx": ("export to ONNX", ("torch", "onnx", "onnxruntime", "onnxscript")),
    "export": ("export as SavedModel, on Python 3.11", ("tensorflow",)),
    "coco": ("COCO's metrics, faster", ("faster_coco_eval",)),
    "wandb": ("runs on Weights & Biases", ("wandb",)),
    "hub": ("the Hugging Face Hub", ("huggingface_hub",)),
}


def main() -> None:
    """Prints the overview."""
    print("\n".join(_lines()))


def _lines() -> Iterator[str]:
    python = f"Python {platform.python_version()}"
    yield f"sasa_jax {sasa_jax.__version__}, JAX {jax.__version__}, {python}"
    devices = Counter(f"{device.platform} ({device.device_kind})" for device in jax.devices())
    yield "Devices: " + ", ".join(f"{count} {name}" for name, count in devices.items())
    yield "\nModels"
    yield textwrap.indent(textwrap.fill(", ".join(sasa_jax.list_models()), 92), "  ")
    yield "\nIn Python"
    yield from _columns(PYTHON)
    yield "\nCommands, each with --help"
    yield from _columns({f"python -m {name}": what for name, what in COMMANDS.items()})
    yield "  To train, evaluate, predict, explain and export: python main.py --help in a clone."
    yield "\nExtras"
    yield from _columns({name: _extra(name) for name in EXTRAS})
    yield "\nMore: help(sasa_jax); README.md and docs/ of a clone, whose `make docs` writes the API"
    yield "reference."


def _columns(rows: dict[str, str]) -> Iterator[str]:
    width = max(map(len, rows))
    return (f"  {left:{width}}  {right}" for left, right in rows.items())


def _extra(name: str) -> str:
    what, modules = EXTRAS[name]
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    state = f"not installed, pip install 'sasa_jax[{name}]'" if missing else "installed"
    return f"{what}: {state}"


if __name__ == "__main__":
    main()
