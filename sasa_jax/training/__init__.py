"""The training loop and its parts; it takes any `Task` and imports nothing of ours."""

from sasa_jax.training.checkpoints import Checkpoints, SaveError, saved_digest
from sasa_jax.training.digest import digest
from sasa_jax.training.distributed import (
    check_connected,
    connect,
    data_mesh,
    failing_alone,
    put_batch,
)
from sasa_jax.training.guards import Interrupted, NotFiniteError
from sasa_jax.training.loop import evaluate, train
from sasa_jax.training.memory import step_memory
from sasa_jax.training.plan import Plan, check_division, make_plan
from sasa_jax.training.state import Program, TrainState, make_program
from sasa_jax.training.task import Evaluation, Task
from sasa_jax.training.wandb_run import WandbError, check_wandb
from sasa_jax.training.workdir import WorkdirError, check_same_config, check_saved, saved_step
from sasa_jax.training.writers import Writers

__all__ = [
    "Checkpoints",
    "Evaluation",
    "Interrupted",
    "NotFiniteError",
    "Plan",
    "Program",
    "SaveError",
    "Task",
    "TrainState",
    "WandbError",
    "WorkdirError",
    "Writers",
    "check_connected",
    "check_division",
    "check_same_config",
    "check_saved",
    "check_wandb",
    "connect",
    "data_mesh",
    "digest",
    "evaluate",
    "failing_alone",
    "make_plan",
    "make_program",
    "put_batch",
    "saved_digest",
    "saved_step",
    "step_memory",
    "train",
]
