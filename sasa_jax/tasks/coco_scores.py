"""From what the devices found in the evaluation images to COCO's numbers and files."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sasa_jax.detection import Detections, coco
from sasa_jax.training import Evaluation


class Found(NamedTuple):
    """What the devices give for one batch of the evaluation.

    Attributes:
        detections: with each of the evaluated variables, in pixels of the network's image.
        index: int64 [B], which images; -1 for what fills up the batch.
        scale: float32 [B], pixels of the network's image for one of the original.
        mask: bool [B], False for what fills up the batch and for images that cannot be read.
    """

    detections: dict[str, Detections]
    index: jax.Array
    scale: jax.Array
    mask: jax.Array


def unreadable(found: Sequence[Found]) -> tuple[int, ...]:
    """The indices of the images that could not be read, in order."""
    hidden = np.concatenate([batch.index[~batch.mask] for batch in found])
    return tuple(sorted(hidden[hidden >= 0].tolist()))


def score(
    found: Sequence[Found], truth: Mapping[str, Any], category_ids: np.ndarray, *, backend: str
) -> Evaluation:
    """COCO's twelve metrics for each of the evaluated variables.

    Args:
        found: all batches, on the host.
        truth: in COCO's instances format, the images in the order of the indices, without those
            that are `unreadable`.
        category_ids: int [logits], -1 where no category uses a logit.
        backend: of `coco.evaluate`.

    Returns:
        The metrics, the number of images, and of unreadable ones if there are any; and the files
        annotations.json (the truth) and detections.json (what the variables "average" found, in
        COCO's result format).

    Raises:
        RuntimeError: an image was left out or seen twice.
    """
    seen = sorted(np.concatenate([batch.index[batch.mask] for batch in found]).tolist())
    corrupt, images = unreadable(found), truth["images"]
    if sorted([*seen, *corrupt]) != list(range(len(images) + len(corrupt))):
        raise RuntimeError(
            f"the evaluation scored {len(seen)} images, {len(set(seen))} different ones, of "
            f"{len(images)}"
        )
    image_ids = {index: image["id"] for index, image in zip(seen, images, strict=True)}
    counts = {"images": len(images)} | ({"unreadable": len(corrupt)} if corrupt else {})
    metrics, files = {}, {"annotations.json": truth}
    for which in found[0].detections:
        results = []
        for batch in found:
            rows = np.flatnonzero(batch.mask)
            detections = jax.tree.map(lambda x, rows=rows: x[rows], batch.detections[which])
            ids = [image_ids[index] for index in batch.index[rows]]
            results += coco.to_results(detections, ids, batch.scale[rows], category_ids)
        results = [result for result in results if result["category_id"] >= 0]
        metrics[which] = coco.evaluate(truth, results, backend=backend) | counts
        if which == "average":
            files["detections.json"] = results
    return Evaluation(metrics, files)
