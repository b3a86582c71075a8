"""configs/digits.py, shrunk until it trains in a second."""

from pathlib import Path
from typing import Any

from configs import digits


def small_digits(data_dir: Path, **overrides: Any) -> dict[str, Any]:
    """One narrow block with 3x3 windows on 150 test images; overrides by key, "__" for a dot."""
    config = digits.get_config().lock()
    config.update_from_flattened_dict(
        {
            "model.blocks": (1,),
            "model.attention_groups": (1,),
            "model.width": 0.25,
            "model.window": 3,
            "batch_size": 16,
            "learning_rate": 0.3,
            "eval_batch_size": 60,
            "total_steps": 24,
            "log_every": 4,
            "eval_every": 12,
            "checkpoint_every": 12,
            "data.dir": str(data_dir),
            "data.eval_split": "test[:150]",
            "data.threads": 1,
            "data.augmentation.rotation": 12.0,
            "data.augmentation.scale": 0.0,
            "data.augmentation.shear": 0.0,
            **{key.replace("__", "."): value for key, value in overrides.items()},
        }
    )
    return config.to_dict()
