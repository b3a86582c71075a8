"""The model card of an export on the Hugging Face Hub: README.md with its metadata block."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sasa_jax.analysis import count
from sasa_jax.export.serving import Network

CARD = "README.md"
# The pictures of a run's last evaluation, the best first.
PICTURES = ("detections.png", "attention.png")
_PIPELINES = {"classification": "image-classification", "detection": "object-detection"}
# Numbers of an evaluation that are no figures of the network's.
_NOT_SCORES = ("correct", "images", "unreadable")
_ELSEWHERE = ("class_names", "plan", "dir", "threads", "wandb")
_PAPER = "https://arxiv.org/abs/1906.05909"


def write_card(folder: Path, network: Network, source: Path, repository: str) -> None:
    """Writes the card, and the picture that it shows, into an exported folder.

    Args:
        folder: gets them.
        network: that was exported.
        source: the run's folder, of whose evaluations the last is told; where it holds none of this
            step, the card says so.
        repository: OWNER/NAME, for the line that loads it.
    """
    picture = next((source / name for name in PICTURES if (source / name).is_file()), None)
    if picture:
        shutil.copy(picture, folder)
    scores = evaluation(source, network.step)
    (folder / CARD).write_text(_card(network, scores, picture and picture.name, repository))


def evaluation(source: Path, step: int) -> dict[str, Any]:
    """The figures of the averaged weights after that step in a run's metrics.jsonl, or {}."""
    file = source / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    for record in map(json.loads, reversed(lines)):
        if record["kind"] == "eval" and record["step"] == step:
            average = {k: v for k, v in record.items() if k.startswith("average/")}
            return {name.removeprefix("average/"): value for name, value in average.items()}
    return {}


def _shaping(config: Any) -> Any:
    """A config without what is left at its default, derived, or of the machine that trained."""
    if not isinstance(config, Mapping):
        return config
    return {k: _shaping(v) for k, v in config.items() if v is not None and k not in _ELSEWHERE}


def _card(network: Network, scores: dict[str, Any], picture: str | None, repository: str) -> str:
    from huggingface_hub import EvalResult, ModelCardData  # an extra

    config, task = network.config, network.task()
    data, size = config["data"], config["data"]["image_size"]
    shown = {name: value for name, value in scores.items() if name not in _NOT_SCORES}
    pipeline = _PIPELINES[config["task"]]
    results = [
        EvalResult(
            task_type=pipeline,
            dataset_type=data["name"],
            dataset_name=data["name"],
            dataset_split=data["eval_split"],
            metric_type=name,
            metric_value=value,
        )
        for name, value in shown.items()
    ]
    metadata = ModelCardData(
        library_name="sasa_jax",
        pipeline_tag=pipeline,
        tags=["jax", "flax", config["model"]["name"]],
        **({"model_name": task.name, "eval_results": results} if results else {}),
    )
    counts = count(task.build_model, size)
    rows = {
        "network": f"{task.name}, {len(network.class_names):,} outputs",
        "parameters": f"{counts.parameters:,}",
        f"FLOPS of one image of {size}x{size}, a multiply-add as two": f"{counts.flops.plain:,}",
        "trained on": f"{data['name']} {data['train_split']}, {network.step:,} steps",
    }
    where = f"{data['name']} {data['eval_split']}"
    if "images" in scores:
        where += f", {scores['images']:,} images"
    rows |= {f"{name} ({where})": f"{value:.4f}" for name, value in shown.items()}
    if not shown:
        rows["evaluation"] = "not run at this step"
    result = "result.names, result.scores" + ", result.boxes" * network.detects
    lines = [
        f"---\n{metadata.to_yaml()}\n---\n",
        f"# {repository.partition('/')[2]}\n",
        f"{task.name}, trained with sasa_jax: [Stand-Alone Self-Attention in Vision Models]"
        f"({_PAPER}) in JAX.\n",
        "```python\nimport sasa_jax  # with the extra `hub`\n",
        f'(result,) = sasa_jax.load("hf://{repository}")("photo.jpg")',
        f"print({result})\n```\n",
        *([f"![The last evaluation]({picture})\n"] if picture else []),
        "| | |\n|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        "\nThe weights are the averages over the training, in float32, under PyTorch's names. "
        "`config.json` has the preprocessing, the names of the classes and all of the run's "
        "config; what shaped it:\n",
        f"```json\n{json.dumps(_shaping(config), indent=1)}\n```\n",
    ]
    return "\n".join(lines)
