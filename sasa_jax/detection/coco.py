"""COCO's result files and its twelve numbers.

pycocotools is the definition; faster-coco-eval gives the same numbers sooner.
"""

import functools
import importlib.util
import json
import math
import numbers
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sasa_jax.checks import check_choice
from sasa_jax.detection.decoding import Detections

METRICS = (
    "AP",
    "AP50",
    "AP75",
    "APs",
    "APm",
    "APl",
    "AR1",
    "AR10",
    "AR100",
    "ARs",
    "ARm",
    "ARl",
)
"""Average precision over IoU 0.5 to 0.95, at 0.5, at 0.75, of small (area up to 32^2), medium and
large (from 96^2) boxes; average recall with 1, 10 and 100 detections an image, and by area."""

Backend = Literal["pycocotools", "faster"]

_LISTS = ("images", "annotations", "categories")
_ANNOTATION_KEYS = ("image_id", "category_id", "bbox", "area")
_RESULT_KEYS = ("image_id", "category_id", "bbox", "score")


def evaluate(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    *,
    backend: Backend = "pycocotools",
    image_ids: Iterable[int] | None = None,
) -> dict[str, float]:
    """COCO's twelve numbers.

    Args:
        ground_truth: COCO's instances format: {"images", "annotations", "categories"}. Annotations
            need image_id, category_id, bbox and area; iscrowd is 0 where it is left out, and ids
            are not read.
        detections: COCO's result format: image_id, category_id, bbox (left, top, width, height in
            pixels of the original image) and score. May be empty.
        backend: "pycocotools" or "faster" (faster-coco-eval).
        image_ids: the images to score; all if None.

    Returns:
        A fraction for each of `METRICS`; as everywhere in the field, -1.0 where there is no box to
        be found (such as APs without small boxes).

    Raises:
        ValueError: an entry that lacks a key or names an image or category that `ground_truth` does
            not have; an unknown backend; image_ids that are not among the images.
        ImportError: the backend is not installed.
    """
    check_choice("backend", backend, Backend)
    known = _known_ids(ground_truth)
    _check("annotation", ground_truth["annotations"], _ANNOTATION_KEYS, known)
    _check("detection", detections, _RESULT_KEYS, known)
    ids = known["image_id"] if image_ids is None else set(image_ids)
    if not ids <= known["image_id"]:
        raise ValueError(
            f"image_ids must be among the {len(known['image_id'])} images of the ground truth; "
            f"{min(ids - known['image_id'])} is not"
        )
    frame = {name: ground_truth[name] for name in ("images", "categories")}
    # Fresh dicts, as the libraries write into them; ids from 1, as they take 0 for "no match".
    truth = [
        {
            "id": number,
            "image_id": entry["image_id"],
            "category_id": entry["category_id"],
            "bbox": entry["bbox"],
            "area": entry["area"],
            "iscrowd": int(entry.get("iscrowd", 0)),
        }
        for number, entry in enumerate(ground_truth["annotations"], start=1)
    ]
    found = [
        {
            "id": number,
            "image_id": entry["image_id"],
            "category_id": entry["category_id"],
            "bbox": entry["bbox"],
            "area": entry["bbox"][2] * entry["bbox"][3],
            "score": entry["score"],
        }
        for number, entry in enumerate(detections, start=1)
    ]
    tables, scorer = BACKENDS[backend]()
    evaluation = scorer(
        _index(tables, {**frame, "annotations": truth}),
        _index(tables, {**frame, "annotations": found}),
        "bbox",
    )
    evaluation.params.imgIds = sorted(ids)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return dict(zip(METRICS, map(float, evaluation.stats[: len(METRICS)]), strict=True))


def to_results(
    detections: Detections,
    image_ids: Sequence[int],
    scales: Sequence[float],
    category_ids: Sequence[int],
) -> list[dict[str, Any]]:
    """Detections of B images in COCO's result format.

    Args:
        detections: of B images, on the host or on a device.
        image_ids: [B].
        scales: [B], pixels of the network's image per pixel of the original.
        category_ids: [classes], COCO's id of every class.

    Returns:
        One dict of plain Python numbers for every detection, image by image, best first; boxes are
        (left, top, width, height) in pixels of the original.
    """
    boxes = np.asarray(detections.boxes, np.float64)
    boxes = boxes / np.asarray(scales, np.float64).reshape(-1, 1, 1)
    top, left, bottom, right = np.moveaxis(boxes, -1, 0)
    xywh = np.stack([left, top, right - left, bottom - top], axis=-1).tolist()
    scores = np.asarray(detections.scores, np.float64).tolist()
    classes = np.asarray(detections.classes).tolist()
    counts = np.asarray(detections.count).tolist()
    return [
        {
            "image_id": int(image_id),
            "category_id": int(category_ids[classes[image][slot]]),
            "bbox": xywh[image][slot],
            "score": scores[image][slot],
        }
        for image, image_id in enumerate(image_ids)
        for slot in range(counts[image])
    ]


def write_results(path: str | Path, results: Iterable[Mapping[str, Any]]) -> None:
    """Writes a result file, JSON as COCO's server takes it; folders are made as needed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")  # so that no reader meets half a file
    partial.write_text(json.dumps(list(results)))
    partial.replace(path)


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """Reads a result file; `evaluate` checks its entries.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or not a list.
    """
    results = _read_json(path)
    if not isinstance(results, list):
        raise ValueError(
            f"{path} must hold a list of detections, each with {', '.join(_RESULT_KEYS)}; it holds "
            f"{_kind(results)}"
        )
    return results


def read_ground_truth(path: str | Path) -> dict[str, Any]:
    """Reads an annotation file in COCO's instances format; `evaluate` checks its entries.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or without the lists images, annotations and categories.
    """
    truth = _read_json(path)
    if not isinstance(truth, dict):
        raise ValueError(
            f"{path} must hold an object with the lists {', '.join(_LISTS)} (COCO's instances "
            f"format); it holds {_kind(truth)}"
        )
    for name in _LISTS:
        if not isinstance(truth.get(name), list):
            raise ValueError(f"{path} must have the list {name!r} (COCO's instances format)")
    return truth


def _known_ids(ground_truth: Mapping[str, Any]) -> dict[str, set[int]]:
    known = {}
    for name, ids_of in (("images", "image_id"), ("categories", "category_id")):
        for place, entry in enumerate(ground_truth[name]):
            if "id" not in entry:
                raise ValueError(f"number {place} of the {name} (counted from 0) has no 'id'")
        known[ids_of] = {entry["id"] for entry in ground_truth[name]}
    return known


def _check(
    what: str,
    entries: Sequence[Mapping[str, Any]],
    keys: Sequence[str],
    known: Mapping[str, Collection[int]],
) -> None:
    """Raises ValueError at the first entry that the libraries would choke on or leave out."""
    for place, entry in enumerate(entries):
        which = f"{what} {place} (counted from 0)"
        if not isinstance(entry, Mapping):
            raise ValueError(f"{which} must be an object with {', '.join(keys)}; it is {entry!r}")
        for key in keys:
            if key not in entry:
                raise ValueError(f"{which} has no {key!r}; it has {', '.join(entry)}")
        for key, ids in known.items():
            if not isinstance(entry[key], Hashable) or entry[key] not in ids:
                raise ValueError(
                    f"{which} has the {key} {entry[key]!r}, which is none of the {len(ids)} of the "
                    "annotation file"
                )
        box = entry["bbox"]
        if not (isinstance(box, Sequence) and len(box) == 4 and all(map(_is_finite, box))):
            raise ValueError(
                f"{which} has the bbox {box!r}; it must be four numbers: left, top, width, height"
            )
        if not _is_finite(entry[keys[-1]]):  # area or score
            raise ValueError(
                f"{which} has the {keys[-1]} {entry[keys[-1]]!r}; it must be a finite number"
            )


def _is_finite(value: object) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value)


def _index(tables: type, dataset: dict[str, Any]) -> Any:
    coco = tables()
    coco.dataset = dataset
    coco.createIndex()
    return coco


@functools.cache
def _pycocotools() -> tuple[type, type]:
    """Its classes, from copies of its modules in which `print` does nothing.

    They tell their progress on stdout. To redirect that would swallow what other threads print,
    and to silence the modules themselves would silence them for everyone.
    """
    copies = []
    for name in ("pycocotools.coco", "pycocotools.cocoeval"):
        spec = importlib.util.find_spec(name)
        copies.append(importlib.util.module_from_spec(spec))
        copies[-1].print = lambda *args, **kwargs: None
        spec.loader.exec_module(copies[-1])
    return copies[0].COCO, copies[1].COCOeval


def _faster() -> tuple[type, type]:
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise ImportError(
            "backend 'faster' needs faster-coco-eval: pip install 'sasa_jax[coco]'"
        ) from error
    return COCO, COCOeval_faster


BACKENDS = {"pycocotools": _pycocotools, "faster": _faster}


def _read_json(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_bytes())
    except ValueError as error:  # of JSON, or of the text's encoding
        raise ValueError(f"{path} is not JSON: {error}") from error


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a string"}.get(type(value), repr(value))
