"""The state of a run, and the one function that advances it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from sasa_jax.training.averages import update_averages
from sasa_jax.training.distributed import replicated, split_by_batch
from sasa_jax.training.optimizer import make_optimizer, make_schedule
from sasa_jax.training.plan import Plan
from sasa_jax.training.task import Batch, Task, Variables


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes, as plain nested dicts of arrays.

    Attributes:
        step: int32 [], steps done.
        params, batch_stats: of the network.
        opt_state: of optax.
        averages: {"params", "batch_stats"}, moving averages of both.
        key: uint32 key data; constant, every step folds its number in.
        skipped: int32 [2], steps whose loss or gradient was not finite: in all, and in a row up to
            now. Such a step changes nothing but the counts, on all devices alike.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    averages: Variables
    key: jax.Array
    skipped: jax.Array

    @property
    def raw(self) -> Variables:
        """The variables as trained."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def evaluated(self) -> dict[str, Variables]:
        """The variables that an evaluation scores, by name."""
        return {"average": self.averages, "raw": self.raw}


@dataclasses.dataclass(frozen=True)
class Program:
    """The jitted functions of a run, and the abstract values (with shardings) they are made for.

    Attributes:
        state: abstract TrainState, replicated.
        batch: abstract batch, split over the devices.
        init: pretrained variables -> TrainState, else random, built on the devices where it
            belongs.
        step: (state, batch) -> (state, scalars); the state given is donated.
    """

    state: TrainState
    batch: Batch
    init: Callable[[Variables], TrainState]
    step: Any


def make_program(task: Task, config: Mapping[str, Any], plan: Plan, mesh: Mesh) -> Program:
    """Shapes first, then shardings, then jitted functions; nothing is computed or compiled yet."""
    schedule = make_schedule(plan.learning_rate, plan.warmup_steps, plan.total_steps)
    optimizer = make_optimizer(
        schedule,
        momentum=config["momentum"],
        nesterov=config["nesterov"],
        weight_decay=config["weight_decay"],
        weight_decay_on=config["weight_decay_on"],
        clip_norm=config["clip_norm"],
    )

    def init(pretrained: Variables) -> TrainState:
        init_key, step_key = jax.random.split(jax.random.key(config["seed"]))
        variables = overlay(task.init(init_key), pretrained)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            **variables,
            opt_state=optimizer.init(variables["params"]),
            averages=variables,
            key=jax.random.key_data(step_key),
            skipped=jnp.zeros((2,), jnp.int32),
        )

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        gradients, batch_stats, scalars = _gradients(
            task, state.raw, batch, key, config["accumulation_steps"]
        )
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(norm) & jnp.isfinite(scalars["loss"])
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        variables = {"params": params, "batch_stats": batch_stats}
        averages = update_averages(state.averages, variables, state.step, config["average_decay"])
        advanced = dataclasses.replace(state, **variables, opt_state=opt_state, averages=averages)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), advanced, state)
        bad = 1 - finite.astype(jnp.int32)
        skipped = jnp.stack([state.skipped[0] + bad, (state.skipped[1] + 1) * bad])
        scalars["learning_rate"] = jnp.asarray(schedule(state.step), jnp.float32)
        scalars["gradient_norm"] = norm
        scalars["skipped_steps"], scalars["skipped_in_a_row"] = skipped[0], skipped[1]
        return dataclasses.replace(kept, step=state.step + 1, skipped=skipped), scalars

    whole, split = replicated(mesh), split_by_batch(mesh)
    return Program(
        state=_with_sharding(jax.eval_shape(init, {}), whole),
        batch=_with_sharding(task.batch_shapes(), split),
        init=jax.jit(init, out_shardings=whole),
        step=jax.jit(step, donate_argnums=0, out_shardings=whole),
    )


def overlay(variables: Any, given: Any) -> Any:
    """Nested dicts with the leaves of `given`, which may have fewer branches, in their place."""
    if not isinstance(variables, dict):
        return given
    new = {name: overlay(variables[name], value) for name, value in given.items()}
    return variables | new


def _gradients(
    task: Task, variables: Variables, batch: Batch, key: jax.Array, micro_batches: int
) -> tuple[Any, Any, dict[str, jax.Array]]:
    """Mean gradient over the batch, taken at once or one micro-batch after the other.

    The batch statistics pass from one micro-batch to the next; each micro-batch is normalised by
    itself, so with BN the sum over micro-batches is close to the whole batch's and not equal.
    """

    def one(
        batch_stats: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        def loss(params: Any) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
            return task.loss({"params": params, "batch_stats": batch_stats}, batch, key)

        (value, (new_stats, scalars)), gradients = jax.value_and_grad(loss, has_aux=True)(
            variables["params"]
        )
        return gradients, new_stats, {"loss": value, **scalars}

    if micro_batches == 1:
        return one(variables["batch_stats"], batch, key)

    # Micro-batch i takes every n-th example, beginning with i: no example changes its device.
    batch = jax.tree.map(lambda x: x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1), batch)
    keys = jax.random.split(key, micro_batches)

    def accumulate(carry: Any, xs: Any) -> tuple[Any, None]:
        total, batch_stats = carry
        gradients, batch_stats, scalars = one(batch_stats, *xs)
        return (jax.tree.map(jnp.add, total, (gradients, scalars)), batch_stats), None

    first = jax.tree.map(lambda x: x[0], (batch, keys))
    shapes = jax.eval_shape(one, variables["batch_stats"], *first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[0], shapes[2]))
    (total, batch_stats), _ = jax.lax.scan(
        accumulate, (zeros, variables["batch_stats"]), (batch, keys)
    )
    gradients, scalars = jax.tree.map(lambda x: x / micro_batches, total)
    return gradients, batch_stats, scalars


def _with_sharding(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
