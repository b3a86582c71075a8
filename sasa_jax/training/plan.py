"""What follows from a config once its overrides are in: steps, warm-up, learning rate."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Plan:
    """The length and the schedule of a run.

    Attributes:
        total_steps: optimizer steps of the whole run.
        warmup_steps: of these, with a learning rate that rises linearly from 0.
        learning_rate: the peak, after scaling with the batch.
        epochs: passes over the training data, not a whole number in general.
    """

    total_steps: int
    warmup_steps: int
    learning_rate: float
    epochs: float


def make_plan(config: Mapping[str, Any], train_size: int) -> Plan:
    """Derives the plan; the only place where config values are turned into others.

    `total_steps`, where it is set, replaces the `total_epochs`; the warm-up keeps its share of the
    run. With a `reference_batch_size` the learning rate is scaled by the batch over the reference.

    Raises:
        ValueError: a value that is not allowed; the message names the key.
    """
    _check(config, "seed", 0 <= config["seed"] < 2**31, "in [0, 2**31)")
    for key in (
        "batch_size",
        "accumulation_steps",
        "log_every",
        "keep_checkpoints",
        "max_skipped_steps",
    ):
        _check(config, key, config[key] >= 1, "at least 1")
    for key in ("checkpoint_every", "eval_every"):
        _check(config, key, config[key] >= 0, "at least 1, or 0 for the end only")
    for key in ("learning_rate", "warmup_epochs", "weight_decay", "hang_seconds"):
        _check(config, key, config[key] >= 0, "at least 0")
    first, last = config["profile"]
    _check(config, "profile", 0 <= first <= last, "(first, last) of the steps to trace, or (0, 0)")
    _check(config, "total_epochs", config["total_epochs"] > 0, "more than 0")
    _check(config, "average_decay", 0 <= config["average_decay"] < 1, "in [0, 1)")
    if config["clip_norm"] is not None:
        _check(config, "clip_norm", config["clip_norm"] > 0, "more than 0, or None")
    if config["total_steps"] is not None:
        _check(config, "total_steps", config["total_steps"] >= 1, "at least 1, or None")
    _check(
        config,
        "warmup_epochs",
        config["warmup_epochs"] < config["total_epochs"],
        f"less than total_epochs, {config['total_epochs']}",
    )
    batch_size = config["batch_size"]
    total_steps = config["total_steps"]
    if total_steps is None:
        total_steps = max(1, round(config["total_epochs"] * train_size / batch_size))
    reference = config["reference_batch_size"]
    return Plan(
        total_steps=total_steps,
        warmup_steps=round(total_steps * config["warmup_epochs"] / config["total_epochs"]),
        learning_rate=config["learning_rate"] * (batch_size / reference if reference else 1.0),
        epochs=total_steps * batch_size / train_size,
    )


def check_division(batch_size: int, accumulation_steps: int, devices: int) -> None:
    """Raises ValueError unless every device gets as many examples in every micro-batch."""
    unit = accumulation_steps * devices
    if unit < 1 or batch_size < 1:
        raise ValueError(
            "batch_size and accumulation_steps must be at least 1, got "
            f"{batch_size} and {accumulation_steps}"
        )
    if batch_size % unit:
        fits = max(batch_size // unit, 1) * unit
        raise ValueError(
            f"batch_size {batch_size} does not divide over {devices} devices x "
            f"{accumulation_steps} accumulation_steps: choose a multiple of {unit}, e.g. {fits}"
        )


def _check(config: Mapping[str, Any], key: str, allowed: bool, what: str) -> None:
    if not allowed:
        raise ValueError(f"{key} must be {what}, got {config[key]}")
