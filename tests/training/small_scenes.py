"""configs/digit_scenes.py, shrunk until it trains in seconds."""

from pathlib import Path
from typing import Any

from configs import digit_scenes

# Of the backbone: also what a classification run must have to start one from.
BACKBONE = {"model.blocks": (1, 1, 1), "model.attention_groups": (1, 2, 3), "model.width": 0.125}


def small_scenes(data_dir: Path, **overrides: Any) -> dict[str, Any]:
    """A narrow RetinaNet on 30 test scenes; overrides by key, "__" for a dot."""
    config = digit_scenes.get_config().lock()
    config.update_from_flattened_dict(
        {
            **BACKBONE,
            "model.num_heads": 2,
            "model.window": 3,
            "detector.features": 16,
            # Attention in here has tests of its own (tests/models) and takes long to compile.
            "detector.fpn": "conv",
            "detector.heads": "conv",
            "detector.tower_depth": 1,
            # So short a training gives low scores; they are to be scored all the same.
            "decoding.score_threshold": 0.0,
            "decoding.candidates_per_level": 20,
            "decoding.max_detections": 20,
            "batch_size": 8,
            "eval_batch_size": 16,
            "total_steps": 8,
            "log_every": 2,
            "eval_every": 4,
            "checkpoint_every": 4,
            "data.dir": str(data_dir),
            "data.eval_split": "test[:30]",
            "data.threads": 1,
            **{key.replace("__", "."): value for key, value in overrides.items()},
        }
    )
    return config.to_dict()
