"""Where a run's numbers and pictures go: standard output, files, TensorBoard, W&B."""

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorboardX

from sasa_jax.training.wandb_run import WandbRun

Record = dict[str, Any]
"""{"kind": "train" or "eval", "step": int, name: float, ...}"""


class Writers:
    """All of them at once; on processes other than the first, none.

    Args:
        workdir: the run's folder; gets metrics.jsonl and tensorboard/.
        start_step: the step the run goes on from, 0 for a new run; TensorBoard hides what an
            earlier process wrote beyond it.
        keep: which of the earlier records stay in metrics.jsonl; by default those up to
            `start_step`, so that no step stands there twice.
        active: False on processes that must not write.
        wandb: the project on Weights & Biases, see `WandbRun`; None is none.
        config: of the run, shown there.

    Raises:
        WandbError: as `WandbRun`.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        start_step: int = 0,
        keep: Callable[[Record], bool] | None = None,
        active: bool = True,
        wandb: str | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        self._active = active
        if not active:
            return
        self._workdir = workdir
        # First: it may refuse.
        self._wandb = WandbRun(wandb, workdir, config or {}) if wandb else None
        path = workdir / "metrics.jsonl"
        _take_back(path, keep or (lambda record: record["step"] <= start_step))
        self._jsonl = path.open("a", encoding="utf-8")
        self._tensorboard = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=start_step + 1 if start_step else None
        )

    def __enter__(self) -> "Writers":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if not self._active:
            return
        # What ended the run is to be told, and not that a full disk takes no last line either.
        with contextlib.suppress(*([OSError] if error else [])):
            self._jsonl.close()
            self._tensorboard.close()
        if self._wandb:
            self._wandb.close(failed=error is not None)

    def write(self, record: Record) -> None:
        """One line of numbers everywhere."""
        if not self._active:
            return
        print(format_record(record), flush=True)
        self._jsonl.write(json.dumps(record) + "\n")
        self._jsonl.flush()
        kind, step = record["kind"], record["step"]
        scalars = {
            f"{kind}/{name}": value
            for name, value in record.items()
            if name not in ("kind", "step", "total_steps")
        }
        for name, value in scalars.items():
            self._tensorboard.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.scalars(step, scalars)

    def file(self, name: str, content: Any) -> None:
        """`content` as JSON into the file `name`, in place of an older one."""
        if self._active:
            write_json(self._workdir / name, content)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """A picture, uint8 [H, W, 3], to all and, in place of an older one, `name`.png."""
        if self._active:
            cv2.imwrite(str(self._workdir / f"{name}.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
            self._tensorboard.add_image(name, image, step, dataformats="HWC")
            if self._wandb:
                self._wandb.image(step, name, image)


def write_json(path: Path, content: Any) -> None:
    """The whole file or none of it."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content), encoding="utf-8")
    os.replace(partial, path)


def format_record(record: Record) -> str:
    """The lines for people: one for training, one for each evaluated network."""
    step = f"step {record['step']}"
    if record["kind"] == "train":
        skipped = record.get("skipped_steps", 0)
        return (
            f"{step}/{record['total_steps']}  loss {record['loss']:.4f}  "
            f"learning rate {record['learning_rate']:.4g}  "
            f"{record['images_per_second']:.1f} images/s "
            f"({record['images_per_second_per_chip']:.1f} a chip)  "
            f"data wait {record['data_wait_share']:.1%}  "
            f"left {_duration(record['seconds_left'])}"
            + f"  SKIPPED {skipped} steps, not finite"
            * (skipped > 0)
        )
    lines: dict[str, str] = {}
    for name, value in record.items():
        which, _, metric = name.rpartition("/")
        if which:
            number = f"{value:.4f}" if isinstance(value, float) else f"{value}"
            lines[which] = lines.get(which, f"{step}  {which:8}") + f" {metric} {number} "
    return "\n".join(line.rstrip() for line in lines.values())


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"


def _take_back(path: Path, keep: Callable[[Record], bool]) -> None:
    """Rewrites the file with only the records to keep; a torn last line goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if keep(record):
            kept.append(line + "\n")
    partial = path.with_suffix(".partial")
    partial.write_text("".join(kept), encoding="utf-8")
    os.replace(partial, path)
