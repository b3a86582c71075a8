"""A run's numbers and pictures on Weights & Biases (wandb.ai), for those who have the extra."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

ID_FILE = "wandb_id.txt"


class WandbError(ValueError):
    """Weights & Biases cannot be used; says why and what to do."""


def check_wandb(project: str | None) -> None:
    """Raises WandbError where a project is given that is no name, or wandb is not installed."""
    if not project:
        return
    try:
        import wandb  # noqa: F401
    except ImportError as error:
        raise WandbError(
            f"wandb={project} needs the package wandb: pip install 'sasa_jax[wandb]'; without it "
            "leave the key out"
        ) from error
    if not all(project.split("/")) or project.count("/") > 1:
        raise WandbError(f"wandb must be PROJECT or ENTITY/PROJECT, got {project!r}")


class WandbRun:
    """Goes on with the workdir's run, whose id stands in wandb_id.txt, or begins one.

    What a process logged beyond its last checkpoint stands there twice: the one that goes on logs
    those steps again. With WANDB_MODE=offline all stays in `workdir`/wandb, for `wandb sync`.

    Args:
        project: PROJECT or ENTITY/PROJECT.
        workdir: the run's folder; its name is the run's.
        config: shown beside the run.

    Raises:
        WandbError: wandb is not installed, nobody is logged in, or there is no such project.
    """

    def __init__(self, project: str, workdir: Path, config: Mapping[str, Any]):
        check_wandb(project)
        import wandb  # an extra

        self._image = wandb.Image
        entity, _, name = project.rpartition("/")
        try:
            self._run = wandb.init(
                entity=entity or None,
                project=name,
                name=workdir.absolute().name,
                id=_run_id(workdir / ID_FILE),
                resume="allow",
                dir=workdir,
                config=dict(config),
            )
        except wandb.Error as error:
            reason = " ".join(str(error).split())
            raise WandbError(
                f"wandb={project}: {reason} With WANDB_MODE=offline in the environment nothing is "
                "sent; `wandb sync` does it later"
            ) from error
        # Evaluations may end after later steps were logged, which wandb's own counter forbids.
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name."""
        self._run.log({**values, "step": step})

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """A picture, uint8 [H, W, 3]."""
        self._run.log({name: self._image(image), "step": step})

    def close(self, *, failed: bool) -> None:
        """Waits until everything is sent; a run that failed is shown as such."""
        self._run.finish(exit_code=int(failed))


def _run_id(file: Path) -> str:
    if not (file.is_file() and file.stat().st_size):
        file.write_text(secrets.token_hex(4))
    return file.read_text().strip()
