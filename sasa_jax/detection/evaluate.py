"""COCO's twelve numbers of a result file.

    python -m sasa_jax.detection.evaluate --annotations instances.json --detections detections.json

Exit code 2 and one sentence on stderr where a file is not what it should be.
"""

import argparse
import sys
import typing
from collections.abc import Sequence

from sasa_jax.detection import coco


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m sasa_jax.detection.evaluate",
        description="COCO's twelve numbers of a result file.",
    )
    parser.add_argument("--annotations", required=True, help="JSON file in COCO's instances format")
    parser.add_argument(
        "--detections",
        required=True,
        help="JSON file in COCO's result format: a list of image_id, category_id, bbox, score",
    )
    parser.add_argument(
        "--backend",
        default="pycocotools",
        choices=typing.get_args(coco.Backend),
        help="pycocotools, the definition, or faster (faster-coco-eval), held equal to it",
    )
    options = parser.parse_args(arguments)
    try:
        ground_truth = coco.read_ground_truth(options.annotations)
        detections = coco.read_results(options.detections)
        metrics = coco.evaluate(ground_truth, detections, backend=options.backend)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(ground_truth['images'])} images, {len(detections)} detections")
    for name, value in metrics.items():
        print(f"{name:<6}{value:7.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
