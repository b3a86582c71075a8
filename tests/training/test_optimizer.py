"""Plan, schedule, weight decay and averages against their formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sasa_jax.training import check_division, make_plan
from sasa_jax.training.averages import update_averages, warmed_decay
from sasa_jax.training.optimizer import make_optimizer, make_schedule, weight_decay_mask
from tests.training.toy import make_config

PARAMS = {
    "bn": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
    "dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
    "row_embedding": jnp.ones((3, 2)),
}


def test_schedule_is_linear_then_half_a_cosine():
    schedule = make_schedule(2.0, warmup_steps=4, total_steps=12)
    got = [float(schedule(step)) for step in range(13)]
    cosine = [1.0 + math.cos(math.pi * t / 8) for t in range(9)]
    np.testing.assert_allclose(got, [0.0, 0.5, 1.0, 1.5, *cosine], atol=1e-6)


def test_schedule_without_warmup_starts_at_its_peak():
    schedule = make_schedule(0.5, warmup_steps=0, total_steps=10)
    assert float(schedule(0)) == 0.5
    assert float(schedule(10)) == pytest.approx(0.0, abs=1e-7)


def test_plan_takes_steps_from_epochs_and_scales_with_the_batch():
    config = make_config(
        total_epochs=130.0,
        warmup_epochs=10.0,
        batch_size=4096,
        learning_rate=1.6,
        reference_batch_size=4096,
    )
    plan = make_plan(config, 1_281_167)
    assert (plan.total_steps, plan.warmup_steps, plan.learning_rate) == (40_662, 3128, 1.6)
    assert plan.epochs == pytest.approx(130, abs=0.01)
    small = make_plan(config | {"batch_size": 256}, 1_281_167)
    assert small.learning_rate == pytest.approx(0.1)
    assert small.total_steps == 650_593


def test_total_steps_replace_epochs_and_the_warmup_keeps_its_share():
    config = make_config(total_epochs=130.0, warmup_epochs=10.0, total_steps=26)
    plan = make_plan(config, 1000)
    assert (plan.total_steps, plan.warmup_steps) == (26, 2)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1),
        ("batch_size", 0),
        ("log_every", 0),
        ("eval_every", -1),
        ("total_steps", 0),
        ("total_epochs", 0.0),
        ("warmup_epochs", 4.0),
        ("average_decay", 1.0),
        ("clip_norm", 0.0),
        ("learning_rate", -0.1),
    ],
)
def test_a_value_out_of_range_is_named(key, value):
    with pytest.raises(ValueError, match=rf"{key} must be .*, got {value}"):
        make_plan(make_config(**{key: value}), 40)


def test_a_batch_that_does_not_divide_says_what_would():
    check_division(64, accumulation_steps=4, devices=8)
    with pytest.raises(ValueError, match=r"batch_size 30 .* multiple of 8, e\.g\. 24"):
        check_division(30, accumulation_steps=2, devices=4)


def test_only_kernels_decay_unless_all_are_asked_for():
    flat = jax.tree.leaves(weight_decay_mask(PARAMS))
    assert sum(flat) == 1
    assert weight_decay_mask(PARAMS)["dense"]["kernel"]
    assert all(jax.tree.leaves(weight_decay_mask(PARAMS, "all")))
    with pytest.raises(ValueError, match="weight_decay_on must be 'kernels' or 'all', got 'none'"):
        weight_decay_mask(PARAMS, "none")


def test_decay_enters_the_gradient_before_the_momentum():
    """Three steps by hand: v = 0.9 v + g + wd p; p = p - rate (0.9 v + g + wd p)."""
    rate, decay = 0.1, 0.5
    optimizer = make_optimizer(lambda step: jnp.float32(rate), weight_decay=decay)
    params = {"kernel": jnp.asarray([1.0, -2.0])}
    state = optimizer.init(params)
    expected, velocity = np.array([1.0, -2.0]), np.zeros(2)
    for step in range(3):
        gradient = np.array([0.3, 0.1 * step])
        updates, state = optimizer.update({"kernel": jnp.float32(gradient)}, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        total = gradient + decay * expected
        velocity = 0.9 * velocity + total
        expected = expected - rate * (0.9 * velocity + total)
    np.testing.assert_allclose(params["kernel"], expected, rtol=1e-6)


def test_the_gradient_is_clipped_by_its_global_norm_and_the_decay_is_not():
    optimizer = make_optimizer(
        lambda step: jnp.float32(1.0), momentum=0.0, weight_decay=1.0, clip_norm=1.0
    )
    params = {"kernel": jnp.asarray([10.0]), "bias": jnp.asarray([10.0])}
    gradients = {"kernel": jnp.asarray([30.0]), "bias": jnp.asarray([40.0])}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], [-10.6], rtol=1e-6)
    np.testing.assert_allclose(updates["bias"], [-0.8], rtol=1e-6)


def test_average_decay_warms_up():
    decays = [float(warmed_decay(jnp.int32(t), 0.99)) for t in (0, 1, 8, 10_000)]
    np.testing.assert_allclose(decays, [1 / 10, 2 / 11, 0.5, 0.99], rtol=1e-6)


def test_averages_follow_their_definition_and_forget_the_start():
    averages, expected = {"a": jnp.float32(100.0)}, 100.0
    for t in range(50):
        value = math.sin(t)
        averages = update_averages(averages, {"a": jnp.float32(value)}, jnp.int32(t), 0.99)
        decay = min(0.99, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * value
    assert float(averages["a"]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert abs(expected) < 1.0  # nothing is left of the 100 it began with
