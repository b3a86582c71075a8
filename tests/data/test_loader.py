"""Order, resuming and sharing among processes, on a toy split whose images are their indices."""

import json
import pickle

import numpy as np
import pytest
from absl import flags

from sasa_jax.data import eval_loader, make_transform, open_split, train_loader


class Toy:
    """Example i is a 1x1 image; the transforms below add what they drew."""

    name, split = "toy", "train"

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self.size:
            raise IndexError(index)
        return {"image": np.zeros((1, 1, 3), np.uint8), "label": index % 5, "index": index}


def noisy(example: dict, rng: np.random.Generator | None) -> dict:
    image = example["image"]
    if rng is not None:
        image = image + rng.integers(256, size=image.shape, dtype=np.uint8)
    return {
        "image": image,
        "label": np.int32(example["label"]),
        "index": np.int64(example["index"]),
    }


def take(loader, count: int) -> list[dict]:
    return [next(loader) for _ in range(count)]


def assert_same(left: list[dict], right: list[dict]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert one[key].dtype == other[key].dtype
            np.testing.assert_array_equal(one[key], other[key])


def test_batch():
    batch = next(train_loader(Toy(10), noisy, batch_size=4, seed=0))
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "image": ((4, 1, 1, 3), "uint8"),
        "label": ((4,), "int32"),
        "index": ((4,), "int64"),
    }
    np.testing.assert_array_equal(batch["label"], batch["index"] % 5)


@pytest.mark.parametrize(("size", "batch_size"), [(12, 4), (10, 4), (3, 8), (1, 2), (101, 7)])
def test_epochs_are_different_permutations(size, batch_size):
    """Nothing is dropped, also where a batch spans epochs or is larger than the data."""
    loader = train_loader(Toy(size), noisy, batch_size=batch_size, seed=1)
    batches = take(loader, -(-4 * size // batch_size))
    stream = np.concatenate([b["index"] for b in batches])[: 4 * size].reshape(4, size)
    np.testing.assert_array_equal(np.sort(stream), np.tile(np.arange(size), (4, 1)))
    if size > 10:
        assert len({tuple(epoch) for epoch in stream}) == 4


def test_augmentation_differs_between_epochs_and_examples():
    batches = take(train_loader(Toy(16), noisy, batch_size=16, seed=0), 4)
    drawn = {pixels.tobytes() for b in batches for pixels in b["image"]}
    assert len(drawn) == 64


@pytest.mark.parametrize("threads", [0, 1, 7, None])
def test_function_of_the_seed_alone(threads):
    def batches(seed: int, threads: int | None = 2) -> list[dict]:
        return take(train_loader(Toy(50), noisy, batch_size=8, seed=seed, threads=threads), 9)

    assert_same(batches(3), batches(3, threads))
    for other in (2, 4):
        pairs = zip(batches(3), batches(other), strict=True)
        assert any((a["index"] != b["index"]).any() for a, b in pairs)


def test_seeds_do_not_share_epochs():
    """Neighbouring seeds are not each other's streams shifted by an epoch."""
    loaders = [train_loader(Toy(50), noisy, batch_size=50, seed=seed) for seed in range(6)]
    orders = {next(loader)["index"].tobytes() for loader in loaders for _ in range(3)}
    assert len(orders) == 18


@pytest.mark.parametrize("size", [5, 37, 64])
def test_same_global_batches_for_any_number_of_processes(size):
    whole = take(train_loader(Toy(size), noisy, batch_size=8, seed=5), 12)
    for count in (2, 4, 8):
        parts = [
            take(
                train_loader(
                    Toy(size), noisy, batch_size=8, seed=5, process_index=p, process_count=count
                ),
                12,
            )
            for p in range(count)
        ]
        joined = [
            {key: np.concatenate([part[key] for part in step]) for key in step[0]}
            for step in zip(*parts, strict=True)
        ]
        assert_same(joined, whole)


def test_resume_anywhere():
    """A state taken after any batch gives exactly the batches that followed, on any loader."""
    generator = np.random.default_rng(0)
    straight = train_loader(Toy(23), noisy, batch_size=6, seed=9)
    states, batches = [], []
    for _ in range(20):
        states.append(json.loads(json.dumps(straight.get_state())))
        batches.append(next(straight))
    used = train_loader(Toy(23), noisy, batch_size=6, seed=9)
    take(used, 2)
    for step in generator.permutation(20)[:8]:
        for loader in (used, train_loader(Toy(23), noisy, batch_size=6, seed=9)):
            loader.set_state(states[step])
            assert loader.get_state() == states[step]
            assert_same(take(loader, min(3, 20 - step)), batches[step : step + 3])


def test_state_is_small_and_the_same_on_every_process():
    """A run saved on one host goes on with two, and reading ahead does not move the state."""
    one = train_loader(Toy(30), noisy, batch_size=4, seed=0, threads=4)
    take(one, 5)
    state = one.get_state()
    assert len(json.dumps(state)) < 100
    expected = next(one)
    halves = []
    for process in range(2):
        loader = train_loader(
            Toy(30), noisy, batch_size=4, seed=0, process_index=process, process_count=2
        )
        take(loader, 5)
        assert loader.get_state() == state
        loader.set_state(state)
        halves.append(next(loader))
    assert_same([{k: np.concatenate([h[k] for h in halves]) for k in expected}], [expected])


def test_state_survives_a_new_batch_size():
    small, large = (train_loader(Toy(30), noisy, batch_size=b, seed=0) for b in (3, 9))
    take(small, 4)
    large.set_state(small.get_state())
    expected = take(small, 3)
    assert_same([next(large)], [{k: np.concatenate([b[k] for b in expected]) for k in expected[0]}])


def test_state_of_another_stream():
    loader = train_loader(Toy(30), noisy, batch_size=4, seed=0)
    with pytest.raises(ValueError, match="seed 1, this loader 0"):
        loader.set_state(train_loader(Toy(30), noisy, batch_size=4, seed=1).get_state())
    with pytest.raises(ValueError, match="num_examples 31, this loader 30"):
        loader.set_state(train_loader(Toy(31), noisy, batch_size=4, seed=0).get_state())


@pytest.mark.parametrize("size", [1, 3, 8, 17])
@pytest.mark.parametrize("batch_size", [1, 4, 8, 24])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_eval_sees_every_example_once(size, batch_size, count):
    if batch_size % count:
        pytest.skip("the batch must be shared equally")
    loaders = [
        eval_loader(
            Toy(size),
            noisy,
            batch_size=batch_size,
            process_index=p,
            process_count=count,
            threads=p % 3,
        )
        for p in range(count)
    ]
    assert {len(loader) for loader in loaders} == {-(-size // batch_size)}
    for _ in range(2):  # each iteration starts anew
        steps = list(zip(*loaders, strict=True))
        assert len(steps) == len(loaders[0])
        assert {b["image"].shape for s in steps for b in s} == {(batch_size // count, 1, 1, 3)}
        joined = {k: np.concatenate([b[k] for s in steps for b in s]) for k in steps[0][0]}
        mask = joined["mask"]
        assert mask.dtype == np.bool_ and mask.sum() == size
        np.testing.assert_array_equal(joined["index"][mask], np.arange(size))
        np.testing.assert_array_equal(joined["label"][mask], np.arange(size) % 5)
        assert (joined["index"][~mask] == -1).all() and (joined["label"][~mask] == 0).all()
        assert {v.dtype.name for v in joined.values()} == {"uint8", "int32", "int64", "bool"}


def test_batches_hold_whatever_the_transform_makes():
    """A filler has the shapes and types of an example, and nothing in it."""

    def boxes(example: dict, rng: np.random.Generator | None) -> dict:
        return {
            "index": np.int64(example["index"]),
            "scale": np.float32(1.5),
            "boxes": np.ones((3, 4), np.float32),
            "valid": np.ones(3, np.bool_),
        }

    train = next(train_loader(Toy(5), boxes, batch_size=2, seed=0))
    assert {k: (v.shape, v.dtype.name) for k, v in train.items()} == {
        "index": ((2,), "int64"),
        "scale": ((2,), "float32"),
        "boxes": ((2, 3, 4), "float32"),
        "valid": ((2, 3), "bool"),
    }
    (batch,) = eval_loader(Toy(2), boxes, batch_size=3)
    assert {k: v.dtype for k, v in batch.items()} == {
        **{k: v.dtype for k, v in train.items()},
        "mask": np.bool_,
    }
    np.testing.assert_array_equal(batch["mask"], [True, True, False])
    np.testing.assert_array_equal(batch["index"], [0, 1, -1])
    np.testing.assert_array_equal(batch["scale"], np.float32([1.5, 1.5, 0]))
    assert batch["boxes"][:2].all() and not batch["boxes"][2].any()
    assert batch["valid"][:2].all() and not batch["valid"][2].any()


@pytest.mark.parametrize("make", [train_loader, eval_loader])
@pytest.mark.parametrize(
    ("size", "arguments", "message"),
    [
        (5, dict(batch_size=0), "batch_size is 0"),
        (5, dict(batch_size=6, process_count=4), "multiple of process_count, 4"),
        (5, dict(batch_size=4, process_index=2, process_count=2), "process_index is 2"),
        (5, dict(batch_size=4, process_count=0), "process_count 0"),
        (5, dict(batch_size=4, threads=-1), "threads is -1"),
        (0, dict(batch_size=4), "split is empty"),
    ],
)
def test_bad_arguments(make, size, arguments, message):
    seed = {"seed": 0} if make is train_loader else {}
    with pytest.raises(ValueError, match=message):
        make(Toy(size), noisy, **arguments, **seed)


def test_worker_processes_change_nothing():
    flags.FLAGS.mark_as_parsed()  # absl.app.run does it in a program
    expected = train_loader(Toy(11), noisy, batch_size=4, seed=2)
    take(expected, 1)
    loader = train_loader(Toy(11), noisy, batch_size=4, seed=2, threads=1, worker_processes=2)
    loader.set_state(expected.get_state())
    assert_same(take(loader, 5), take(expected, 5))
    loader.close()
    with pytest.raises(ValueError, match="worker_processes is -1"):
        train_loader(Toy(11), noisy, batch_size=4, seed=2, worker_processes=-1)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_bad_seed(seed):
    with pytest.raises(ValueError, match="seed is"):
        train_loader(Toy(3), noisy, batch_size=1, seed=seed)


def test_closed_loader_can_be_set():
    loader = train_loader(Toy(10), noisy, batch_size=2, seed=0, threads=2)
    expected, state = next(loader), {"position": 0, "seed": 0, "num_examples": 10}
    loader.close()
    loader.set_state(state)
    assert_same([next(loader)], [expected])


def test_errors_in_a_transform_reach_the_caller():
    def broken(example: dict, rng: np.random.Generator) -> dict:
        raise ValueError("no image")

    with pytest.raises(ValueError, match="no image"):
        next(train_loader(Toy(3), broken, batch_size=2, seed=0, threads=2))


def test_digits_end_to_end(data_dir):
    train = open_split("digits", "train", data_dir)
    test = open_split("digits", "test", data_dir)
    transform = make_transform("shift_rotate", 32, train=True)
    batch = next(train_loader(train, transform, batch_size=64, seed=0))
    assert batch["image"].shape == (64, 32, 32, 3)
    assert [train[i]["label"] for i in batch["index"]] == batch["label"].tolist()
    loader = eval_loader(test, make_transform("shift_rotate", 32, train=False), batch_size=100)
    assert sum(b["mask"].sum() for b in loader) == 360
    copy = pickle.loads(pickle.dumps(test))
    assert copy[5] == test[5]
