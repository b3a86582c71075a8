"""A user's own folder: what is read, what is put right and told, and what is refused, by name."""

import copy
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from sasa_jax.data import CorruptRecord, DatasetError, open_detection_split

GOOD = {
    "images": [
        {"id": 30, "file_name": "a.png", "height": 20, "width": 40},
        {"id": 10, "file_name": "b.png", "height": 20, "width": 40},
        {"id": 20, "file_name": "c.png", "height": 20, "width": 40},
    ],
    "annotations": [
        {"id": 0, "image_id": 20, "category_id": 9, "bbox": [1, 2, 3.5, 4], "area": 7.5},
        {"id": 1, "image_id": 30, "category_id": 4, "bbox": [0, 0, 40, 20], "iscrowd": 1},
        {"id": 2, "image_id": 30, "category_id": 9, "bbox": [39, 19, 1, 1], "iscrowd": 0},
    ],
    "categories": [{"id": 9, "name": "nut"}, {"id": 4, "name": "bolt", "supercategory": "part"}],
}


def write(folder: Path, content: dict | str, images: str = "abc") -> Path:
    (folder / "train").mkdir()
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "train" / "instances.json").write_text(text)
    for name in images:
        cv2.imwrite(str(folder / "train" / f"{name}.png"), np.zeros((20, 40, 3), np.uint8))
    return folder


def changed(part: str, place: int, **values) -> dict:
    content = copy.deepcopy(GOOD)
    content[part][place].update(values)
    return content


def boxes_of(*boxes: list[float]) -> dict:
    """The good file with these boxes, all of image 30."""
    entries = [{"image_id": 30, "category_id": 9, "bbox": box} for box in boxes]
    return {**GOOD, "annotations": entries}


def opened(folder: Path):
    return open_detection_split("coco_folder", "train", folder)


def test_good(tmp_path):
    """Images in the file's order, classes in that of the ids, whatever the annotations' order."""
    split = opened(write(tmp_path, GOOD))
    assert [tuple(category) for category in split.categories] == [(4, "bolt"), (9, "nut")]
    first, second, third = (split[i] for i in range(3))
    assert [e["image_id"] for e in (first, second, third)] == [30, 10, 20]
    np.testing.assert_array_equal(first["boxes"], [[0, 0, 20, 40], [19, 39, 20, 40]])
    np.testing.assert_array_equal(first["classes"], [0, 1])
    np.testing.assert_array_equal(first["crowd"], [True, False])
    np.testing.assert_array_equal(first["area"], [800, 1])  # the boxes', as the file has none
    assert second["boxes"].shape == (0, 4) and second["classes"].shape == (0,)
    np.testing.assert_array_equal(third["boxes"], np.float32([[2, 1, 6, 4.5]]))
    assert third["area"] == [7.5]
    assert split.description == f"coco_folder train: 3 images, 2 classes, {tmp_path / 'train'}"
    # pycocotools takes a match with number 0 for none.
    assert [entry["id"] for entry in split.ground_truth()["annotations"]] == [1, 2, 3]


def test_boxes_that_are_put_right(tmp_path):
    boxes = [
        [5, 5, 0, 3],  # no width
        [5, 5, 3, -1],  # negative height
        [40, 0, 5, 5],  # to the right of the image
        [-9, 0, 8, 5],  # to the left
        [-3, 2, 10, 10],  # out by 3 pixels
        [30, 10, 20, 20],  # out by 10
        [-0.4, 0, 40.8, 20.3],  # rounding
        [1, 1, 5, 5],
    ]
    split = opened(write(tmp_path, boxes_of(*boxes)))
    assert split.skipped == {
        "boxes without area left out": 2,
        "boxes outside their image left out": 2,
        "boxes cut at the border of their image": 2,
    }
    expected = [[2, 0, 12, 7], [10, 30, 20, 40], [0, 0, 20, 40], [1, 1, 6, 6]]
    np.testing.assert_array_equal(split[0]["boxes"], np.float32(expected))
    np.testing.assert_array_equal(split[0]["area"], [70, 100, 800, 25])
    assert "2 boxes outside their image left out" in split.description
    assert len(split.ground_truth()["annotations"]) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not JSON"),
        ('{"images": [', "is not JSON"),
        ("[]", "holds a list; expected COCO's format"),
        ("{}", "holds no categories"),
        ({**GOOD, "images": []}, "holds no images"),
        ({**GOOD, "annotations": []}, "holds no annotations"),
        ({**GOOD, "annotations": {"a": 1}}, "holds no annotations; .* a list 'annotations'"),
        ({**GOOD, "categories": []}, "holds no categories"),
        ({**GOOD, "images": [{"id": 1}]}, r"images\[0\] lacks file_name, height, width"),
        ({**GOOD, "annotations": [3]}, r"annotations\[0\] lacks image_id, category_id, bbox"),
        (changed("images", 1, id=30), "1 ids stand for several images, the first is 30"),
        (changed("categories", 1, id=9), "1 ids stand for several categories, the first is 9"),
        (changed("images", 0, height=0), "height in images is 0; expected an integer, at least 1"),
        (changed("images", 0, width=None), "width in images is None"),
        (changed("images", 0, id="x"), "id in images is 'x'; expected an integer"),
        (
            changed("annotations", 1, category_id=5),
            r"annotations\[1\] has the category_id 5, .* none of the categories; 1 of 3",
        ),
        (changed("annotations", 2, image_id=31), "image_id 31, which is none of the images"),
        (changed("annotations", 2, image_id=[30]), r"image_id \[30\], which is none"),
        (changed("annotations", 0, bbox=[1, 2, 3]), r"bbox of annotations\[0\] is \[1, 2, 3\]"),
        (changed("annotations", 1, bbox=[1, 2, 3, None]), "expected 4 numbers"),
        (changed("annotations", 1, bbox=[1, 2, 3, float("nan")]), "expected 4 numbers"),
        (changed("annotations", 1, bbox={"left": 3}), "expected 4 numbers"),
        (changed("annotations", 1, area="big"), r"area of annotations\[1\] is 'big'"),
        (boxes_of([0, 0, 0, 0], [99, 0, 5, 5]), "no usable box in 2 annotations"),
        (changed("images", 2, file_name="z.png"), r"1 of 3 images of .*missing; the first is .*z"),
    ],
)
def test_refused(tmp_path, content, message):
    with pytest.raises(DatasetError, match=message) as error:
        opened(write(tmp_path, content))
    assert str(tmp_path / "train") in str(error.value)


def test_images_that_do_not_fit(tmp_path):
    folder = write(tmp_path, changed("images", 0, height=40, width=20))
    with pytest.raises(CorruptRecord, match=r"a.png: it is 20 x 40 .* says 40 x 20.*EXIF"):
        opened(folder)[0]
    (folder / "train" / "b.png").write_text("no image")
    with pytest.raises(CorruptRecord, match=r"b.png: 8 bytes that are no image"):
        opened(folder)[1]


def test_missing_folders(tmp_path):
    with pytest.raises(DatasetError, match="has no split"):
        opened(tmp_path)
    write(tmp_path, GOOD)
    with pytest.raises(DatasetError, match=r"did you mean 'train'.*splits of .* are train"):
        open_detection_split("coco_folder", "trian", tmp_path)
    with pytest.raises(DatasetError, match="needs data_dir"):
        open_detection_split("coco_folder", "train")
