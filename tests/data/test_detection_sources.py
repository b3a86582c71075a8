"""COCO through TFDS and as a folder: ids, areas, boxes and crowd come back as they were."""

import contextlib
import io
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from sasa_jax.data import (
    DatasetError,
    DetectionEval,
    DetectionTrain,
    eval_loader,
    open_detection_split,
    train_loader,
)
from sasa_jax.data.image_transforms import decode

FOLDERS = {"train": "train2017", "validation": "val2017"}


def coco_features(names: list[str]) -> tfds.features.FeaturesDict:
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "image/filename": tfds.features.Text(),
            "image/id": np.int64,
            "objects": tfds.features.Sequence(
                {
                    "id": np.int64,
                    "area": np.int64,
                    "bbox": tfds.features.BBoxFeature(),
                    "label": tfds.features.ClassLabel(names=names),
                    "is_crowd": np.bool_,
                }
            ),
        }
    )


class Coco(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """What TFDS's builder writes, which itself needs TensorFlow (`test_official_builder`)."""

    BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="2017", version=tfds.core.Version("1.1.0")),)
    source: Path

    def _info(self) -> tfds.core.DatasetInfo:
        names = [category["name"] for category in official(self.source, "train")["categories"]]
        return tfds.core.DatasetInfo(builder=self, features=coco_features(names))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        return {split: self._generate_examples(split) for split in FOLDERS}

    def _generate_examples(self, split: str):
        content = official(self.source, split)
        names = {category["id"]: category["name"] for category in content["categories"]}
        for image in content["images"]:
            height, width = image["height"], image["width"]
            objects = []
            for entry in content["annotations"]:
                if entry["image_id"] == image["id"]:
                    left, top, w, h = entry["bbox"]
                    objects.append(
                        {
                            "id": entry["id"],
                            "area": int(entry["area"]),
                            "bbox": tfds.features.BBox(
                                top / height, left / width, (top + h) / height, (left + w) / width
                            ),
                            "label": names[entry["category_id"]],
                            "is_crowd": bool(entry["iscrowd"]),
                        }
                    )
            path = self.source / FOLDERS[split] / image["file_name"]
            yield (
                path.name,
                {
                    "image": path,
                    "image/filename": path.name,
                    "image/id": image["id"],
                    "objects": objects,
                },
            )


def official(folder: Path, split: str) -> dict:
    file = folder / "annotations" / f"instances_{FOLDERS[split]}.json"
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def tfds_dir(coco_tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("coco_tfds")
    Coco.source = coco_tiny
    builder = Coco(config="2017", data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return folder


@pytest.fixture(scope="module")
def folder_dir(coco_tiny, tmp_path_factory) -> Path:
    """The same as a COCO folder: one split with images/, one without."""
    folder = tmp_path_factory.mktemp("coco_folder")
    (folder / "train").mkdir()
    (folder / "train" / "images").symlink_to(coco_tiny / "train2017")
    (folder / "validation").mkdir()
    for path in (coco_tiny / "val2017").iterdir():
        (folder / "validation" / path.name).symlink_to(path)
    for split in FOLDERS:
        (folder / split / "instances.json").write_text(json.dumps(official(coco_tiny, split)))
    return folder


@pytest.fixture(params=["coco/2017", "coco_folder"])
def opener(request):
    """(split) -> the opened split, once through TFDS and once as a folder."""
    fixture = "tfds_dir" if request.param == "coco/2017" else "folder_dir"
    folder = request.getfixturevalue(fixture)
    return lambda split: open_detection_split(request.param, split, folder)


def check_ground_truth(ground_truth: dict, content: dict, *, whole_areas: bool) -> None:
    """All that pycocotools reads is as in COCO's own file."""
    sizes = {i["id"]: (i["height"], i["width"], i["file_name"]) for i in content["images"]}
    found = {i["id"]: (i["height"], i["width"], i["file_name"]) for i in ground_truth["images"]}
    assert found == sizes
    names = [(category["id"], category["name"]) for category in content["categories"]]
    assert [(c["id"], c["name"]) for c in ground_truth["categories"]] == names
    numbers = [entry["id"] for entry in ground_truth["annotations"]]
    assert numbers == list(range(1, len(content["annotations"]) + 1))

    def row(entry: dict) -> tuple:
        box = [round(x, 2) for x in entry["bbox"]]
        return entry["image_id"], entry["category_id"], entry["iscrowd"], *box

    ours = sorted(ground_truth["annotations"], key=row)
    theirs = sorted(content["annotations"], key=row)
    for one, other in zip(ours, theirs, strict=True):
        assert row(one)[:3] == row(other)[:3]
        np.testing.assert_allclose(one["bbox"], other["bbox"], atol=1e-3)
        assert one["area"] == (int(other["area"]) if whole_areas else other["area"])


def average_precision(ground_truth: dict, detections: list[dict]) -> float:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = ground_truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[0]


def as_detections(ground_truth: dict) -> list[dict]:
    keys = ("image_id", "category_id", "bbox")
    return [
        {**{key: entry[key] for key in keys}, "score": 1.0}
        for entry in ground_truth["annotations"]
        if not entry["iscrowd"]
    ]


@pytest.mark.parametrize("split", FOLDERS)
def test_ground_truth_is_coco_s(opener, coco_tiny, split):
    opened = opener(split)
    ground_truth = opened.ground_truth()
    whole = opened.name == "coco/2017:1.1.0"  # TFDS stores areas as integers
    check_ground_truth(ground_truth, official(coco_tiny, split), whole_areas=whole)
    assert (len(opened), opened.num_classes, not opened.skipped) == (80, 80, True)
    assert json.loads(json.dumps(ground_truth)) == ground_truth
    # Perfect detections, scored against our form and against COCO's own file.
    detections = as_detections(ground_truth)
    assert average_precision(ground_truth, detections) == pytest.approx(1.0, abs=1e-9)
    assert average_precision(official(coco_tiny, split), detections) == pytest.approx(1.0, abs=1e-9)
    # The crowd regions matter: as plain boxes they would be missed.
    plain = [{**entry, "iscrowd": 0} for entry in ground_truth["annotations"]]
    assert average_precision({**ground_truth, "annotations": plain}, detections) < 0.9999


def test_examples(opener, coco_tiny):
    opened = opener("validation")
    content = official(coco_tiny, "validation")
    crowd = 0
    for i in range(len(opened)):
        example = opened[i]
        file = coco_tiny / "val2017" / example["file_name"]
        assert example["image"] == file.read_bytes() and example["index"] == i
        assert decode(example["image"]).shape[:2] == (example["height"], example["width"])
        entries = [e for e in content["annotations"] if e["image_id"] == example["image_id"]]
        assert len(example["boxes"]) == len(entries)
        dtypes = [example[key].dtype.name for key in ("boxes", "classes", "crowd", "area")]
        assert dtypes == ["float32", "int32", "bool", "float64"]
        ids = [opened.categories[place].id for place in example["classes"]]
        assert sorted(ids) == sorted(entry["category_id"] for entry in entries)
        assert (example["boxes"] >= 0).all()
        assert (example["boxes"][:, 2:] <= [example["height"], example["width"]]).all()
        crowd += example["crowd"].sum()
    assert crowd == 11
    for index in (-1, 80):
        with pytest.raises(IndexError, match="0 to 79"):
            opened[index]
    copy = pickle.loads(pickle.dumps(opened))
    np.testing.assert_array_equal(copy[5]["boxes"], opened[5]["boxes"])


def test_batches(opener):
    train = opener("train")
    transform = DetectionTrain(128, max_boxes=30)
    loader = train_loader(train, transform, batch_size=16, seed=0, threads=2)
    batch = next(loader)
    loader.close()
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        "image": ((16, 128, 128, 3), "uint8"),
        "boxes": ((16, 30, 4), "float32"),
        "classes": ((16, 30), "int32"),
        "valid": ((16, 30), "bool"),
        "index": ((16,), "int64"),
    }
    boxes = batch["boxes"][batch["valid"]]
    assert (boxes[:, 2:] > boxes[:, :2]).all() and (0 <= boxes).all() and (boxes <= 128).all()
    for index, classes, valid in zip(
        *(batch[k] for k in ("index", "classes", "valid")), strict=True
    ):
        example = train[int(index)]
        assert set(classes[valid]) <= set(example["classes"][~example["crowd"]])
    seen = []
    for batch in eval_loader(opener("validation"), DetectionEval(128), batch_size=32, threads=2):
        seen.extend(batch["index"][batch["mask"]])
        assert batch["scale"].shape == (32,) and batch["size"].shape == (32, 2)
    assert seen == list(range(80))
    assert "tensorflow" not in sys.modules


def test_slices_and_errors_of_tfds(tfds_dir, data_dir):
    assert len(open_detection_split("coco", "train[:10]", tfds_dir)) == 10
    with pytest.raises(DatasetError, match="did you mean 'validation'"):
        open_detection_split("coco/2017", "validatoin", tfds_dir)
    with pytest.raises(DatasetError, match=r"python -m sasa_jax\.data\.prepare coco/2014"):
        open_detection_split("coco/2014", "train", tfds_dir)
    with pytest.raises(DatasetError, match="did you mean 'coco_folder'"):
        open_detection_split("coco_foldr", "train", tfds_dir)
    with pytest.raises(DatasetError, match="features are image, label; needed are image, image/"):
        open_detection_split("digits", "train", data_dir)


class Cells(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set of somebody else's, with a box without area and, in "empty", no box."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=coco_features(["red", "white"]))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        boxes = [[(0.0, 0.0, 0.5, 0.5), (0.25, 0.25, 0.25, 0.75)], [], [(0.5, 0.5, 1.0, 1.0)]]
        return {"train": self._generate_examples(boxes), "empty": self._generate_examples([[], []])}

    def _generate_examples(self, images: list[list[tuple]]):
        buffer = io.BytesIO()
        tfds.core.lazy_imports.PIL_Image.new("RGB", (64, 32)).save(buffer, "JPEG")
        for i, boxes in enumerate(images):
            objects = [
                {
                    "id": 0,
                    "area": 9,
                    "bbox": tfds.features.BBox(*box),
                    "label": "white",
                    "is_crowd": False,
                }
                for box in boxes
            ]
            yield (
                i,
                {
                    "image": buffer.getvalue(),
                    "image/filename": f"{i}.jpg",
                    "image/id": i,
                    "objects": objects,
                },
            )


def test_other_data_sets_in_coco_s_layout(tmp_path):
    """Category ids count from 1; a box without area is left out and told of, once."""
    Cells(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    opened = open_detection_split("cells", "train", tmp_path)
    assert [tuple(category) for category in opened.categories] == [(1, "red"), (2, "white")]
    for _ in range(2):
        examples = {opened[i]["image_id"]: opened[i] for i in range(3)}
    np.testing.assert_array_equal(examples[0]["boxes"], [[0, 0, 16, 32]])
    np.testing.assert_array_equal(examples[2]["boxes"], [[16, 32, 32, 64]])
    assert examples[1]["boxes"].shape == (0, 4)
    assert opened.skipped == {"boxes without area left out": 1}
    assert opened.description.endswith(", 1 boxes without area left out")
    ground_truth = opened.ground_truth()
    assert len(ground_truth["annotations"]) == 2 and len(ground_truth["images"]) == 3
    assert {entry["category_id"] for entry in ground_truth["annotations"]} == {2}
    with pytest.raises(DatasetError, match="has no box in its first 2 images"):
        open_detection_split("cells", "empty", tmp_path)


@pytest.mark.slow
def test_official_builder(coco_tiny, shared_data, tmp_path):
    """The same through TFDS's own builder."""
    pytest.importorskip("tensorflow", reason="TFDS's coco builder needs TensorFlow")
    command = [sys.executable, shared_data / "make_mini_coco.py", "--src", coco_tiny]
    subprocess.run([*command, "--data_dir", tmp_path], check=True)
    for split in FOLDERS:
        ground_truth = open_detection_split("coco/2017", split, tmp_path).ground_truth()
        check_ground_truth(ground_truth, official(coco_tiny, split), whole_areas=True)
    with pytest.raises(DatasetError, match="coco's test split has no public annotations"):
        open_detection_split("coco/2017", "test", tmp_path)
