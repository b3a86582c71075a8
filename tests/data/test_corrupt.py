"""Broken records on disk: replaced or masked out, named once, the same for everyone who reads."""

import json
import re

import numpy as np
import pytest
from absl import flags

from sasa_jax.data import (
    CorruptDataError,
    CorruptRecord,
    DatasetError,
    eval_loader,
    make_transform,
    open_detection_split,
    open_split,
    train_loader,
)
from sasa_jax.data.corrupt import CorruptRecords
from tests.data.broken import BROKEN, SIZE, TAIL, damage, jpeg, write_coco_folder, write_pictures
from tests.data.test_detection_sources import Cells
from tests.data.test_loader import Toy, assert_same, noisy, take

TRAIN = make_transform("crop_flip", 8, train=True)
EVAL = make_transform("crop_flip", 8, train=False)
WHOLE = [i for i in range(SIZE) if i not in BROKEN]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Four files that are no images, and a record with a wrong checksum in the test split."""
    folder = tmp_path_factory.mktemp("broken")
    damage(write_pictures(folder, BROKEN | {30: jpeg(30) + TAIL}), "test")
    return folder


@pytest.fixture
def train(data_dir):
    return open_split("pictures", "train", data_dir)


def told(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("corrupt")]


def test_the_next_of_the_order_stands_in_and_each_is_told_of_once(train, capsys):
    loader = train_loader(train, TRAIN, batch_size=8, seed=4, threads=2)
    stream = np.concatenate([batch["index"] for batch in take(loader, 12)]).reshape(3, SIZE)
    loader.close()
    for epoch, seen in enumerate(stream):
        order = np.random.default_rng((4, 0, epoch)).permutation(SIZE)
        expected = order.copy()
        for place in reversed(range(-SIZE, SIZE)):  # past the end follows the beginning
            if order[place] in BROKEN:
                expected[place] = expected[(place + 1) % SIZE]
        np.testing.assert_array_equal(seen, expected)
        assert set(seen) == set(WHOLE)
    lines = told(capsys)
    assert len(lines) == len(BROKEN)
    for number in BROKEN:
        start = f"corrupt, left out: pictures:1.0.0 train, example {number}: {number}.JPEG: OpenCV"
        assert sum(line.startswith(start) for line in lines) == 1


def test_the_stand_in_is_augmented_as_its_position_asks(train):
    batch = next(train_loader(train, TRAIN, batch_size=SIZE, seed=0, threads=0))
    for position, index in enumerate(batch["index"].tolist()):
        wanted = TRAIN(train[index], np.random.default_rng((0, 1, position)))
        np.testing.assert_array_equal(batch["image"][position], wanted["image"])


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("threads", [0, 4])
def test_processes_threads_and_resuming_change_nothing(train, count, threads):
    """Batches of 12: epochs end within them."""
    whole = take(train_loader(train, TRAIN, batch_size=12, seed=1, threads=1), 8)
    parts = []
    for process in range(count):
        options = dict(batch_size=12, seed=1, process_index=process, process_count=count)
        first = train_loader(train, TRAIN, **options, threads=threads)
        batches = take(first, 3)
        second = train_loader(train, TRAIN, **options, threads=threads)
        second.set_state(json.loads(json.dumps(first.get_state())))
        parts.append(batches + take(second, 5))
        first.close()
        second.close()
    joined = [
        {key: np.concatenate([part[key] for part in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(joined, whole)


def test_worker_processes_change_nothing_and_the_main_one_tells(train, capsys):
    flags.FLAGS.mark_as_parsed()  # absl.app.run does it in a program
    expected = take(train_loader(train, TRAIN, batch_size=8, seed=2, threads=0), 4)
    lines = told(capsys)
    loader = train_loader(train, TRAIN, batch_size=8, seed=2, threads=1, worker_processes=1)
    assert_same(take(loader, 4), expected)
    loader.close()
    assert told(capsys) == lines and len(lines) == len(BROKEN)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_evaluation_masks_them_out_and_counts_them(data_dir, capsys, count):
    split = open_split("pictures", "test", data_dir)
    loaders = [
        eval_loader(split, EVAL, batch_size=12, process_index=p, process_count=count, threads=p % 3)
        for p in range(count)
    ]
    for _ in range(2):
        steps = zip(*loaders, strict=True)
        joined = {k: np.concatenate(v) for k, v in zip_keys(b for s in steps for b in s)}
        mask, index = joined["mask"], joined["index"]
        unreadable = [*BROKEN, 30]
        np.testing.assert_array_equal(np.sort(index), [*[-1] * (36 - SIZE), *range(SIZE)])
        np.testing.assert_array_equal(np.sort(index[~mask & (index >= 0)]), np.sort(unreadable))
        assert not joined["image"][~mask].any() and not joined["label"][~mask].any()
        assert all(joined["image"][mask].reshape(mask.sum(), -1).any(axis=1))
    lines = told(capsys)
    assert len(lines) == len(unreadable)
    wrong = r"example 30: chunk data hash mismatch .* in pictures-test.array_record-00000-of-00001$"
    assert sum(bool(re.search(wrong, line)) for line in lines) == 1


def zip_keys(batches):
    batches = list(batches)
    return [(key, [batch[key] for batch in batches]) for key in batches[0]]


def test_padding_needs_no_first_example(train):
    """A process that holds nothing but padding, where example 0 is corrupt."""

    class Later:
        name, split = "later", "test"

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return train[index + 4]

    (batch,) = eval_loader(Later(), EVAL, batch_size=8, process_index=1, process_count=2)
    assert batch["image"].shape == (4, 8, 8, 3) and not batch["mask"].any()
    assert (batch["index"] == -1).all()


class Some(Toy):
    """Of which some are corrupt."""

    def __init__(self, size: int, corrupt: int):
        super().__init__(size)
        self.corrupt = corrupt

    def __getitem__(self, index: int) -> dict:
        if index < self.corrupt:
            raise CorruptRecord("worn out", f"{index}.jpg")
        return super().__getitem__(index)


def loaders(split, **options):
    yield eval_loader(split, noisy, batch_size=4, threads=2, **options)
    yield train_loader(split, noisy, batch_size=4, seed=0, threads=2, **options)


@pytest.mark.parametrize(
    ("size", "corrupt", "share", "passes"),
    [
        (20, 5, 0.001, True),  # a handful
        (20, 6, 0.001, False),
        (20, 1, 0.0, False),
        (200, 6, 0.03, True),
        (200, 7, 0.03, False),
        (5, 5, 1.0, False),  # not one that could be used
        (3, 3, 0.001, False),
    ],
)
def test_too_many_end_the_run(size, corrupt, share, passes):
    for loader in loaders(Some(size, corrupt), max_corrupt_share=share):
        batches = (batch for batch, _ in zip(loader, range(size), strict=False))
        if passes:
            seen = np.concatenate([batch["index"] for batch in batches])
            assert set(range(corrupt, size)) <= set(seen.tolist())
            continue
        with pytest.raises(CorruptDataError) as error:
            list(batches)
        text = str(error.value)
        assert f" of {size}, more than the " in text and f"max_corrupt_share {share:g} lets" in text
        assert "\n" not in text and "larger share" in text


def test_too_many_names_the_first():
    records = CorruptRecords("toy train", 1000, 0.0)
    with pytest.raises(CorruptDataError, match=r"^corrupt examples of toy train: 1 of 1,000, more"):
        records.add(7, CorruptRecord("worn out", "7.jpg"))
    records = CorruptRecords("toy train", 1000, 0.001)
    with pytest.raises(CorruptDataError, match=r"example 0: 0.jpg: a; .*; example 2: .*; \.\.\."):
        for index in (0, 0, 0, 1, 2, 3, 4, 5):
            records.add(index, CorruptRecord("a", f"{index}.jpg"))


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_bad_share(share):
    with pytest.raises(ValueError, match="max_corrupt_share is"):
        train_loader(Toy(5), noisy, batch_size=2, seed=0, max_corrupt_share=share)


@pytest.mark.parametrize("error", [OSError, MemoryError, RuntimeError, ValueError])
@pytest.mark.parametrize("threads", [0, 2])
def test_what_is_not_about_a_record_ends_the_run(error, threads):
    def broken(example, rng):
        raise error("the disk is gone")

    for loader in (
        train_loader(Toy(5), broken, batch_size=2, seed=0, threads=threads),
        iter(eval_loader(Toy(5), broken, batch_size=2, threads=threads)),
    ):
        with pytest.raises(error, match="the disk is gone"):
            next(loader)


def test_files_cut_short_or_missing_are_refused_when_opened(tmp_path):
    folder = write_pictures(tmp_path, {}, size=300)
    (file,) = folder.glob("*-train.array_record-*")
    whole = file.read_bytes()
    for length in (0, 1000, 65536, len(whole) // 2, len(whole) - 65536, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(DatasetError, match=f"1 of 1 files cannot be read.*{file.name}: .*anew"):
            open_split("pictures", "train[10%:]", tmp_path)
    file.unlink()
    with pytest.raises(DatasetError, match="No such file"):
        open_split("pictures", "train", tmp_path)
    file.write_bytes(next(folder.glob("*-test.*")).read_bytes())
    split = open_split("pictures", "train", tmp_path)
    file.unlink()
    with pytest.raises(RuntimeError, match="No such file"):
        split[0]


def test_files_of_another_preparation_are_refused(tmp_path):
    folder = write_pictures(tmp_path / "one", {}, size=10)
    other = write_pictures(tmp_path / "other", {}, size=12)
    (file,), (wrong,) = (f.glob("*-train.array_record-*") for f in (folder, other))
    file.write_bytes(wrong.read_bytes())
    with pytest.raises(DatasetError, match=r"holds 12 records, and dataset_info.json says 10"):
        open_split("pictures", "train", tmp_path / "one")


def test_labels_that_cannot_be(tmp_path):
    folder = write_pictures(tmp_path, {}, size=8)
    features = folder / "features.json"
    features.write_text(features.read_text().replace('"numClasses": "10"', '"numClasses": "3"'))
    split = open_split("pictures", "train", tmp_path)
    assert [split[i]["label"] for i in (0, 1, 2, 4)] == [0, 1, 2, 0]
    with pytest.raises(CorruptRecord, match=r"^3.JPEG: its label is 3; expected 0 to 2$"):
        split[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder")
    write_coco_folder(folder, {3: b"no image", 5: jpeg(5)[:-20]}, size=8)
    return folder


def test_a_folder_s_images(folder, capsys):
    """One that has no header, and one of which only the header is whole."""
    split = open_detection_split("coco_folder", "train", folder)
    transform = make_transform("none", 8, train=False)
    with pytest.raises(CorruptRecord, match=r"3.jpg: 8 bytes that are no image"):
        split[3]

    def boxless(example, rng):
        return transform({**example, "label": 0}, rng)

    (batch,) = eval_loader(split, boxless, batch_size=8)
    assert batch["index"][~batch["mask"]].tolist() == [3, 5]
    assert [re.search(r"example (\d): (\d.jpg)", line).groups() for line in told(capsys)] == [
        ("3", "3.jpg"),
        ("5", "5.jpg"),
    ]
    truth = split.ground_truth(without=(3, 5))
    assert [image["id"] for image in truth["images"]] == [100, 101, 102, 104, 106, 107]
    assert len(truth["annotations"]) == 6
    (folder / "train" / "0.jpg").rename(folder / "train" / "gone.jpg")
    with pytest.raises(FileNotFoundError):
        split[0]
    with pytest.raises(DatasetError, match=r"1 of 8 images .* are missing"):
        open_detection_split("coco_folder", "train", folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(bbox=[[0.0, 0.0, 1.2, 0.5]]), r"a box \(0, 0, 14.4, 6\) is not within its 12 x 12"),
        (dict(bbox=[[-0.2, 0.0, 1.0, 0.5]]), r"a box \(-2.4, .* is not within"),
        (dict(bbox=[[0.0, 0.0, np.nan, 0.5]]), r"a box \(0, 0, nan, 6\) is not within"),
        (dict(label=[2]), "a label is 2; expected 0 to 1"),
        (dict(label=[-1]), "a label is -1; expected 0 to 1"),
        (dict(image=b"no image"), "8 bytes that are no image"),
    ],
)
def test_boxes_and_classes_that_cannot_be(tmp_path, changes, message):
    """In a data set of TFDS, whose own writer would refuse them."""
    Cells(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    split = open_detection_split("cells", "train", tmp_path)
    objects = dict(bbox=[[0.0, 0.0, 1.0, 1.05]], label=[1], is_crowd=[False], area=[9])
    stored = {"image": jpeg(0), "image/filename": b"a.jpg", "image/id": 1, "objects": objects}
    split._records = [stored]
    np.testing.assert_array_equal(split[0]["boxes"], [[0, 0, 12, 12]])  # rounding is cut
    image = changes.get("image", stored["image"])
    split._records = [{**stored, "image": image, "objects": {**objects, **changes}}]
    with pytest.raises(CorruptRecord, match=f"^a.jpg: {message}"):
        split[0]
