"""What every task on images shares."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sasa_jax.data import MEAN_RGB, STD_RGB


def normalise(images: jax.Array) -> jax.Array:
    """uint8 [B, H, W, 3] to float32 with mean 0 and deviation 1 over ImageNet, on the device."""
    mean, std = (jnp.asarray(x, jnp.float32).reshape(1, 1, 1, 3) for x in (MEAN_RGB, STD_RGB))
    return (images.astype(jnp.float32) - mean) / std


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a config sets; None is as the default has it."""
    return {key: value for key, value in options.items() if value is not None}


def processes() -> dict[str, int]:
    """Which part of the global batches a loader is to read here, of how many."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}


def eval_batch_size(config: Mapping[str, Any]) -> int:
    """The config's, or a micro-batch; rounded up so that the devices share it."""
    wanted = config["eval_batch_size"] or config["batch_size"] // config["accumulation_steps"]
    return -(-wanted // jax.device_count()) * jax.device_count()


def check_bn_groups(config: Mapping[str, Any]) -> None:
    """Raises ValueError unless BN's groups divide what is normalised at a time."""
    group = config["model"]["bn_group_size"]
    micro_batch = config["batch_size"] // config["accumulation_steps"]
    if group and micro_batch % group:
        raise ValueError(
            f"bn_group_size {group} does not divide the {micro_batch} images that are normalised "
            "at a time (batch_size / accumulation_steps)"
        )


def describe_parameters(parameters: int, stem: Mapping[str, Any]) -> str:
    """Their number, and which of them the paper's own number lacks, given the stem's shapes."""
    tables = [stem[key] for key in ("row_embedding", "column_embedding") if key in stem]
    if not tables:
        return f"{parameters:,} parameters"
    relative = sum(table.size for table in tables)
    return (
        f"{parameters:,} parameters = {parameters - relative:,} + {relative} of the relative term "
        "in the stem's logits, which the paper's appendix does not write but its FLOPS need; "
        "without it: --config.model.stem_relative=False"
    )
