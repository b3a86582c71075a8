"""Losses against direct float64 formulas; gradients against finite differences and PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from sasa_jax.detection import Anchors, detection_loss
from sasa_jax.detection.losses import focal_loss, huber_loss
from sasa_jax.detection.matching import Match, match
from tests.detection.scenes import random_boxes

ANCHORS = Anchors(size=2.0, levels=(3, 4)).boxes((32, 32))
CLASSES = 5
KEYS = ("class_logits", "box_codes", "boxes", "classes", "valid")


def make_batch(rng: np.random.Generator, images: int = 4, boxes: int = 6) -> dict[str, np.ndarray]:
    shape = (images, len(ANCHORS))
    return {
        "class_logits": rng.normal(size=(*shape, CLASSES)).astype(np.float32),
        "box_codes": rng.normal(size=(*shape, 4)).astype(np.float32),
        "boxes": random_boxes(rng, images, boxes, side=32),
        "classes": rng.integers(0, CLASSES, (images, boxes)).astype(np.int32),
        "valid": rng.random((images, boxes)) < 0.7,
    }


@functools.partial(jax.jit, static_argnames=("alpha", "gamma", "delta", "low_quality"))
def batch_loss(batch, **options):
    logits, codes, *truth = (batch[key] for key in KEYS)
    return detection_loss(logits, codes, ANCHORS, *truth, **options)


@functools.partial(jax.jit, static_argnames=("gamma", "low_quality"))
def gradients(batch, **options):
    """Loss and its gradients to the network's two outputs."""

    def loss(logits, codes):
        return batch_loss({**batch, "class_logits": logits, "box_codes": codes}, **options)

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
        batch["class_logits"], batch["box_codes"]
    )


def matches(batch) -> Match:
    found = jax.jit(jax.vmap(match, in_axes=(None, 0, 0)))(ANCHORS, batch["boxes"], batch["valid"])
    return jax.tree.map(np.array, found)


def plain_focal(logits, targets, alpha=0.25, gamma=2.0):
    """The formula, its two logarithms taken from the side where nothing cancels."""
    logits = np.asarray(logits, np.float64)
    log_p, log_q = -np.logaddexp(0, -logits), -np.logaddexp(0, logits)
    ones = -alpha * np.exp(gamma * log_q) * log_p
    zeros = -(1 - alpha) * np.exp(gamma * log_p) * log_q
    return np.where(targets, ones, zeros)


def plain_loss(batch, alpha=0.25, gamma=2.0, delta=0.1, box_weight=10.0):
    """`detection_loss` in float64, anchor by anchor."""
    found = matches(batch)
    class_sum = box_sum = 0
    for image, anchor in np.argwhere(~found.ignored):
        target = np.zeros(CLASSES)
        if found.positive[image, anchor]:
            box = found.index[image, anchor]
            target[batch["classes"][image, box]] = 1
            top, left, bottom, right = np.float64(batch["boxes"][image, box])
            a_top, a_left, a_bottom, a_right = np.float64(ANCHORS[anchor])
            wanted = [
                ((top + bottom) - (a_top + a_bottom)) / 2 / (a_bottom - a_top),
                ((left + right) - (a_left + a_right)) / 2 / (a_right - a_left),
                np.log((bottom - top) / (a_bottom - a_top)),
                np.log((right - left) / (a_right - a_left)),
            ]
            error = np.abs(batch["box_codes"][image, anchor] - wanted)
            box_sum += np.where(error <= delta, error**2 / 2, delta * (error - delta / 2)).sum()
        class_sum += plain_focal(batch["class_logits"][image, anchor], target, alpha, gamma).sum()
    positives = found.positive.sum()
    count = max(positives, 1)
    return (class_sum + box_weight * box_sum) / count, class_sum / count, box_sum / count, positives


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.5, 2.0])
def test_focal_loss_is_the_formula_up_to_logits_of_100(gamma, x64):
    logits = np.concatenate([np.linspace(-100, 100, 401), [1e-8, -1e-8]])
    targets = np.arange(len(logits)) % 3 == 0
    for dtype, tolerance in ((jnp.float64, 1e-12), (jnp.float32, 1e-5)):
        for one in (targets, ~targets):
            found = focal_loss(jnp.asarray(logits, dtype), jnp.asarray(one), gamma=gamma)
            assert found.dtype == dtype
            expected = plain_focal(logits, one, gamma=gamma)
            # Below 1e-30 float32 has no such numbers, or few of their digits.
            np.testing.assert_allclose(found, expected, rtol=tolerance, atol=1e-30)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_gradients_are_right_and_finite_everywhere(gamma, x64):
    logits = jnp.asarray([-20.0, -3.0, -0.5, 0.0, 0.5, 3.0, 20.0])
    targets = jnp.asarray([0, 1, 0, 1, 1, 0, 1])
    check_grads(lambda x: focal_loss(x, targets, gamma=gamma), (logits,), order=1, rtol=1e-6)
    extreme = jnp.asarray([-1e4, -100, -50, 0, 50, 100, 1e4], jnp.float32)
    for target in (jnp.zeros(7, bool), jnp.ones(7, bool)):
        slope = jax.grad(lambda x, t=target: focal_loss(x, t, gamma=gamma).sum())(extreme)
        assert np.isfinite(slope).all()
        # Far on the wrong side the loss is linear, far on the right side flat.
        wrong, right = (slope[0], slope[-1]) if target[0] else (slope[-1], slope[0])
        np.testing.assert_allclose(abs(wrong), 0.25 if target[0] else 0.75, rtol=1e-6)
        assert right == 0


def test_huber_loss_by_hand_and_its_gradient(x64):
    errors = jnp.asarray([-3.0, -0.1, -0.05, 0.0, 0.05, 0.1, 3.0])
    expected = [0.1 * 2.95, 0.005, 0.00125, 0, 0.00125, 0.005, 0.1 * 2.95]
    np.testing.assert_allclose(huber_loss(errors), expected)
    slope = jax.grad(lambda x: huber_loss(x, 0.1).sum())(errors)
    np.testing.assert_allclose(slope[jnp.asarray([0, 2, 3, 4, 6])], [-0.1, -0.05, 0, 0.05, 0.1])
    check_grads(huber_loss, (errors[jnp.asarray([0, 2, 4, 6])],), order=1, rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"alpha": 0.4, "gamma": 1.5, "delta": 1.0}])
def test_the_loss_of_a_batch(options):
    batch = make_batch(np.random.default_rng(0))
    loss, parts = batch_loss(batch, **options)
    expected, class_loss, box_loss, positives = plain_loss(batch, **options)
    assert positives > 5
    assert loss.dtype == jnp.float32 and loss.shape == ()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(parts["class_loss"], class_loss, rtol=1e-5)
    np.testing.assert_allclose(parts["box_loss"], box_loss, rtol=1e-5)
    assert parts["positives"] == positives / 4


def test_gradients_in_double_precision(x64):
    """Against finite differences: along random directions, all outputs at once."""
    batch = make_batch(np.random.default_rng(1), images=2)
    batch |= {key: np.float64(batch[key]) for key in ("class_logits", "box_codes")}

    def loss(logits, codes):
        return batch_loss({**batch, "class_logits": logits, "box_codes": codes})[0]

    assert loss(*(batch[key] for key in KEYS[:2])).dtype == jnp.float64
    inputs = tuple(jnp.asarray(batch[key]) for key in KEYS[:2])
    check_grads(loss, inputs, order=1, modes=["rev"], rtol=1e-5, eps=1e-6)


def test_gradients_in_single_precision_and_where_they_are_zero():
    batch = make_batch(np.random.default_rng(2))
    (_, parts), (by_logits, by_codes) = gradients(batch)
    with jax.enable_x64(True):
        double = batch | {key: np.float64(batch[key]) for key in KEYS[:2]}
        _, (exact_logits, exact_codes) = gradients(double)
    np.testing.assert_allclose(by_logits, exact_logits, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(by_codes, exact_codes, rtol=1e-4, atol=1e-8)
    found = matches(batch)
    assert found.ignored.any()
    np.testing.assert_array_equal(np.any(by_logits != 0, axis=-1), ~found.ignored)
    np.testing.assert_array_equal(np.any(by_codes != 0, axis=-1), found.positive)
    assert parts["positives"] > 0


HARD_BOXES = {
    "no_boxes": (np.zeros((6, 4)), False),
    "all_crowd": (np.float32([[0, 0, 16, 16]] * 6), False),
    "at_the_border": (np.float32([[0, 0, 16, 16], [16, 16, 32, 32], [0, 0, 32, 32]] * 2), True),
    "one_pixel": (np.float32([[i, i, i + 1, i + 1] for i in range(6)]), True),
    "empty": (np.float32([[5, 5, 5, 5], [8, 8, 8, 20]] * 3), True),
    "a_hundred": (random_boxes(np.random.default_rng(3), 100, side=32), True),
}


@pytest.mark.parametrize("low_quality", [False, True])
@pytest.mark.parametrize("case", HARD_BOXES)
def test_hard_boxes_leave_everything_finite(case, low_quality):
    boxes, valid = HARD_BOXES[case]
    batch = make_batch(np.random.default_rng(4), images=1, boxes=len(boxes))
    batch |= {"boxes": np.float32(boxes)[None], "valid": np.full((1, len(boxes)), valid)}
    batch["class_logits"] *= 30  # up to about +-100
    batch["box_codes"] *= 1e3
    (loss, parts), slopes = gradients(batch, low_quality=low_quality)
    for number in (loss, *parts.values(), *slopes):
        assert np.isfinite(number).all()
    if case in ("no_boxes", "all_crowd", "empty"):
        assert parts["positives"] == 0 and parts["box_loss"] == 0 and parts["class_loss"] > 0
        assert not slopes[1].any()
    else:
        assert (parts["positives"] > 0) == (low_quality or case != "one_pixel")


def test_padding_and_crowds_change_nothing():
    batch = make_batch(np.random.default_rng(5))
    other = make_batch(np.random.default_rng(6))
    changed = dict(batch)
    for key in ("boxes", "classes"):
        valid = batch["valid"].reshape(4, 6, *[1] * (batch[key].ndim - 2))
        changed[key] = np.where(valid, batch[key], other[key])
    np.testing.assert_array_equal(batch_loss(batch)[0], batch_loss(changed)[0])


def test_half_precision_predictions_are_summed_in_single_precision():
    batch = make_batch(np.random.default_rng(7))
    half = batch | {key: jnp.asarray(batch[key], jnp.bfloat16) for key in KEYS[:2]}
    rounded = half | {key: half[key].astype(jnp.float32) for key in KEYS[:2]}
    loss, _ = batch_loss(half)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, batch_loss(rounded)[0], rtol=1e-6)


def test_many_small_terms_are_not_lost():
    """At the usual start (scores of 0.01) each of COCO's millions of terms is below 1e-6."""
    anchors = Anchors().boxes((640, 640))
    logits = jnp.full((1, len(anchors), 90), -4.6, jnp.float32)
    none = (np.zeros((1, 1, 4), np.float32), np.zeros((1, 1), np.int32), np.zeros((1, 1), bool))
    loss, _ = jax.jit(detection_loss)(
        logits, np.zeros((1, len(anchors), 4), np.float32), anchors, *none
    )
    np.testing.assert_allclose(loss, plain_focal(-4.6, False) * logits.size, rtol=1e-5)


def test_sharded_over_the_batch_it_exchanges_sums_alone():
    batch = make_batch(np.random.default_rng(8))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    on_four = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    compiled = gradients.lower(on_four, low_quality=True).compile()
    text = compiled.as_text()
    assert "all-reduce(" in text
    assert not any(
        f"{name}(" in text for name in ("all-gather", "all-to-all", "collective-permute")
    )
    (loss, _), slopes = compiled(on_four)
    (expected, _), expected_slopes = gradients(batch, low_quality=True)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    for slope, wanted in zip(slopes, expected_slopes, strict=True):
        np.testing.assert_allclose(slope, wanted, rtol=1e-5, atol=1e-9)


def test_memory_grows_with_the_logits_and_not_with_the_overlaps():
    """No [B, A, G] array of overlaps, and few of the size of the logits."""
    anchors = Anchors().boxes((128, 128))
    shapes = {
        "class_logits": ((2, len(anchors), 20), "float32"),
        "box_codes": ((2, len(anchors), 4), "float32"),
        "boxes": ((2, 400, 4), "float32"),
        "classes": ((2, 400), "int32"),
        "valid": ((2, 400), "bool"),
    }
    arguments = [jax.ShapeDtypeStruct(*shapes[key]) for key in KEYS]

    def slopes(logits, codes, *truth):
        return jax.grad(
            lambda logits, codes: detection_loss(logits, codes, anchors, *truth)[0], argnums=(0, 1)
        )(logits, codes)

    _, backward = jax.eval_shape(
        lambda *arguments: jax.vjp(
            lambda logits: detection_loss(logits, arguments[1], anchors, *arguments[2:])[0],
            arguments[0],
        ),
        *arguments,
    )
    kept = [leaf for leaf in jax.tree.leaves(backward) if leaf.size >= arguments[0].size]
    assert len(kept) == 1  # for the backward pass: the logits
    memory = jax.jit(slopes).lower(*arguments).compile().memory_analysis()
    logits = 4 * 2 * len(anchors) * 20
    overlaps = 4 * 2 * len(anchors) * 400
    assert memory.temp_size_in_bytes < 6 * logits < overlaps / 3


def test_against_pytorch():
    """The same loss written with PyTorch's own functions, and its autograd."""
    gamma = 1.5
    torch = pytest.importorskip("torch")
    batch = make_batch(np.random.default_rng(9))
    (loss, _), slopes = gradients(batch, gamma=gamma)
    logits, codes = (torch.tensor(batch[key], requires_grad=True) for key in KEYS[:2])
    found = matches(batch)
    index, positive, ignored = (torch.from_numpy(part) for part in found)
    classes = torch.from_numpy(batch["classes"]).long().gather(1, index.long())
    targets = torch.nn.functional.one_hot(classes, CLASSES) * positive[..., None]
    targets = targets.to(torch.float32)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, targets, reduction="none"
    )
    probability = logits.sigmoid()
    wrong = probability * (1 - targets) + (1 - probability) * targets
    weight = 0.25 * targets + 0.75 * (1 - targets)
    class_sum = (weight * wrong**gamma * entropy)[~ignored].sum()
    boxes = torch.from_numpy(batch["boxes"]).gather(1, index.long()[..., None].expand(-1, -1, 4))
    anchors = torch.from_numpy(ANCHORS).expand_as(boxes)

    def middle_and_sides(x):
        return (x[..., :2] + x[..., 2:]) / 2, x[..., 2:] - x[..., :2]

    (middle, sides), (anchor_middle, anchor_sides) = map(middle_and_sides, (boxes, anchors))
    wanted = torch.cat([(middle - anchor_middle) / anchor_sides, (sides / anchor_sides).log()], -1)
    box_sum = torch.nn.functional.huber_loss(
        codes[positive], wanted[positive], delta=0.1, reduction="sum"
    )
    reference = (class_sum + 10 * box_sum) / positive.sum()
    reference.backward()
    np.testing.assert_allclose(loss, reference.item(), rtol=1e-5)
    for slope, leaf in zip(slopes, (logits, codes), strict=True):
        np.testing.assert_allclose(slope, leaf.grad.numpy(), rtol=1e-4, atol=1e-7)
