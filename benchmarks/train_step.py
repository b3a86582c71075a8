"""The whole training step of the attention networks against the convolutional ResNet-50.

    taskset -c 0,1 python benchmarks/train_step.py
    python benchmarks/train_step.py --peer                 # on a GPU, beside PyTorch's ResNet-50
    python benchmarks/train_step.py --estimate v5e:2x2     # no TPU needed, but libtpu
    python benchmarks/train_step.py --estimate v5e:8x16    # the paper's batch on 128 chips

Forward, backward, BatchNorm, optimizer and averages: the step that main.py would run, of
configs/sa_resnet50.py with the model exchanged, on random images. Measured on what is there, all
models taking turns (float32 on CPU, bfloat16 elsewhere), with PyTorch's ResNet-50 if asked for, or
estimated per chip from what libtpu compiles (tpu_estimate.py says what an estimate counts and what
it does not).

Prints a table and writes benchmarks/results/train_step_<device or estimate>.json and .png. With
--json it prints one object a line instead: model, platform, images_per_second (of one device),
ratio_to_resnet50 (how many times its step; null without it), measured, and the details. With
--quick: two images of 64x64 pixels, two repetitions, no result files.
"""

import argparse
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common, torch_resnet
from benchmarks.tpu_estimate import Topology, count_kernels
from benchmarks.tpu_program import Collective
from configs import sa_resnet50
from sasa_jax import list_models, training
from sasa_jax.nn import AttentionStem, LocalSelfAttention
from sasa_jax.ops.local_attention.workloads import RESNET50
from sasa_jax.tasks import Classification

MODELS = ("resnet50", "sa_resnet50_conv_stem", "sa_resnet50")
PAPER_CHIPS = 128  # from here on the batch is the config's own


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny images, two repetitions")
    parser.add_argument("--json", action="store_true", help="one object a line, no table")
    parser.add_argument("--batch", type=int, nargs="+", help="images a device")
    parser.add_argument("--models", nargs="+", default=MODELS, choices=list_models())
    parser.add_argument("--peer", action="store_true", help="PyTorch's ResNet-50, too")
    parser.add_argument("--estimate", metavar="TOPOLOGY", help="such as v5e:2x2; no TPU needed")
    arguments = parser.parse_args(argv)
    if arguments.estimate:
        try:
            topology = Topology(arguments.estimate, bundles=False)
        except RuntimeError as error:
            sys.exit(f"error: {error}")
        rows = estimated(topology, arguments)
        name = f"train_step_estimate_{arguments.estimate}"
    else:
        rows = measured(arguments)
        name = f"train_step_{jax.devices()[0].device_kind}"
    done = []
    for row in rows:
        done.append(row)
        if arguments.json:
            print(json.dumps(row), flush=True)
        if not arguments.quick:  # after every row: an estimate of all of them takes long
            path = common.write(name, common.setting(arguments.estimate) | {"records": done})
            plot(path.with_suffix(".png"), done)
    if not arguments.json:
        print("\n".join(table(done)))
    if not arguments.quick:
        common.note(f"written to {path}")


def program(model: str, batch: int, size: int, dtype: str, mesh: Mesh) -> training.Program:
    """The training step of configs/sa_resnet50.py with another model, for a batch in all."""
    config = sa_resnet50.get_config()
    config.model.name, config.model.dtype = model, dtype
    config.batch_size, config.data.image_size = batch, size
    config = config.to_dict()
    task = Classification.open(config, allow_absent=True)
    return training.make_program(task, config, training.make_plan(config, task.train_size), mesh)


def measured(arguments: argparse.Namespace) -> Iterator[dict]:
    """One row for each model: median of steps taken in turns, for each batch."""
    models, batches, quick = arguments.models, arguments.batch, arguments.quick
    on_cpu = jax.default_backend() == "cpu"
    dtype = "float32" if on_cpu else "bfloat16"
    size, repetitions = (64, 2) if quick else (224, 7)
    steps = common.repeats()
    mesh = training.data_mesh()
    if arguments.peer and (reason := torch_resnet.missing()):
        sys.exit(f"error: --peer: {reason}")
    if arguments.peer and mesh.size > 1:
        sys.exit("error: --peer: it runs on one device; set CUDA_VISIBLE_DEVICES=0")
    for batch in batches or [2 if quick else 8 if on_cpu else 128]:
        common.note(
            f"{', '.join(models)}: {batch} images of {size}x{size} a device on {mesh.size} x "
            f"{jax.devices()[0].device_kind}, {dtype}, {repetitions} turns of {steps} steps; "
            "compiling first"
        )
        setting = batch * mesh.size, size, dtype, mesh
        with ThreadPoolExecutor(len(models)) as pool:  # most of the time is spent in compilers
            compiled = {model: pool.submit(compile_step, model, *setting) for model in models}
        runs, memory = {}, {}
        with jax.set_mesh(mesh):
            for model, job in compiled.items():
                made, step = job.result()
                runs[model] = run(made, step, *setting[:2], mesh, steps)
                memory[model] = training.step_memory(step)
            if arguments.peer:
                runs[torch_resnet.NAME], memory_of_peer = torch_resnet.step(batch, size, steps)
            seconds = common.medians(runs, repetitions)
        if arguments.peer:
            memory[torch_resnet.NAME] = memory_of_peer()
        for model in runs:
            milliseconds = 1000 * seconds[model] / steps
            yield {
                "model": model,
                "platform": jax.default_backend(),
                "device": jax.devices()[0].device_kind,
                "devices": mesh.size,
                "dtype": dtype,
                "image_size": size,
                "images_per_device": batch,
                "images_per_second": round(1000 * batch / milliseconds, 2),
                "milliseconds": round(milliseconds, 2),
                "ratio_to_resnet50": ratio(seconds, model),
                "measured": True,
                "state_bytes": memory[model].arguments,
                "temporary_bytes": memory[model].temporaries,
            }


def compile_step(
    model: str, batch: int, size: int, dtype: str, mesh: Mesh
) -> tuple[training.Program, jax.stages.Compiled]:
    """The program and its compiled step; each thread has a context mesh of its own."""
    with jax.set_mesh(mesh):
        made = program(model, batch, size, dtype, mesh)
        compiled = made.step.lower(made.state, made.batch).compile()
    common.note(f"  compiled {model}")
    return made, compiled


def run(
    made: training.Program,
    compiled: jax.stages.Compiled,
    batch: int,
    size: int,
    mesh: Mesh,
    steps: int,
) -> Callable[[], None]:
    """A call that takes so many steps."""
    state = made.init({})
    random = np.random.default_rng(0)
    shape = (batch // jax.process_count(), size, size, 3)
    images = {
        "image": random.integers(0, 256, shape, dtype=np.uint8),
        "label": random.integers(0, 1000, shape[0], dtype=np.int32),
    }
    images = training.put_batch(images, mesh)

    def call() -> None:
        nonlocal state
        for _ in range(steps):
            state, scalars = compiled(state, images)
        jax.block_until_ready((state, scalars))

    return call


def estimated(topology: Topology, arguments: argparse.Namespace) -> Iterator[dict]:
    """One row for each model and number of images a chip."""
    models, batches, quick = arguments.models, arguments.batch, arguments.quick
    mesh = topology.mesh()
    size = 64 if quick else 224
    if batches is None:
        config_batch = sa_resnet50.get_config().batch_size
        pod = mesh.size >= PAPER_CHIPS
        batches = [2] if quick else [config_batch // mesh.size] if pod else [128, 32]
    for batch in batches:
        common.note(f"counting the kernels at {batch} images")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
            programs = operators(batch, size)
            kernels = other.submit(count_kernels, arguments.estimate, programs).result()
        milliseconds: dict[str, float] = {}
        for model in models:
            common.note(
                f"compiling {model}, {batch} images a chip, for {mesh.size} x {topology.kind}: "
                "a minute or two"
            )
            with jax.set_mesh(mesh):
                made = program(model, batch * mesh.size, size, "bfloat16", mesh)
                lowered = made.step.lower(made.state, made.batch)
                try:
                    compiled, estimate = topology.estimate(lowered, kernels)
                except jax.errors.JaxRuntimeError as error:  # the chip's memory does not hold it
                    common.note(f"  {model} left out: {str(error).splitlines()[0]}")
                    continue
            memory = training.step_memory(compiled)
            parameters = jax.tree.leaves(made.state.params)
            milliseconds[model] = estimate.milliseconds
            yield {
                "model": model,
                "platform": "tpu",
                "device": topology.kind,
                "devices": mesh.size,
                "dtype": "bfloat16",
                "image_size": size,
                "images_per_device": batch,
                "images_per_second": round(1000 * batch / estimate.milliseconds, 1),
                "milliseconds": round(estimate.milliseconds, 2),
                "ratio_to_resnet50": ratio(milliseconds, model),
                "measured": False,
                "milliseconds_by_kind": {k: round(v, 2) for k, v in estimate.kinds.items()},
                "milliseconds_by_kernel": {
                    k.name: round(k.milliseconds, 2) for k in estimate.kernels
                },
                "without_estimate": estimate.uncounted,
                "state_bytes": memory.arguments,
                "temporary_bytes": memory.temporaries,
                "fits": memory.total < topology.chip.memory,
                "parameters": sum(x.size for x in parameters),
                "collectives": by_purpose(estimate.collectives, [x.size for x in parameters]),
            }


def operators(batch: int, size: int) -> list:
    """The network's attention layers, forward and backward, as programs of their own."""

    def shape(*sides: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *sides), "bfloat16")

    programs = [(attention_stem, (shape(size, size, 3), shape(size // 4, size // 4, 64)))]
    for workload in RESNET50:
        x = shape(*(side * size // 224 for side in workload.image[:2]), workload.channels)
        programs.append((attention_layer, (x, x)))
    return programs


def attention_stem(images: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, nnx.State]:
    """Its output and the gradients of its parameters."""
    stem = AttentionStem(64, batch_norm={}, dtype=images.dtype, rngs=nnx.Rngs(0))
    return both_passes(stem, cotangent, images, train=True)


def attention_layer(x: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, nnx.State]:
    """The same."""
    layer = LocalSelfAttention(x.shape[-1], dtype=x.dtype, rngs=nnx.Rngs(0))
    return both_passes(layer, cotangent, x)


def both_passes(
    module: nnx.Module, cotangent: jax.Array, *inputs: Any, **options: Any
) -> tuple[jax.Array, nnx.State]:
    graph, params, rest = nnx.split(module, nnx.Param, ...)

    def call(params: nnx.State) -> jax.Array:
        return nnx.merge(graph, params, rest, copy=True)(*inputs, **options)

    output, transpose = jax.vjp(call, params)
    return output, transpose(cotangent)[0]


def ratio(times: dict[str, float], model: str) -> float | None:
    return round(times[model] / times["resnet50"], 3) if "resnet50" in times else None


def by_purpose(collectives: list[Collective], parameters: list[int]) -> list[dict]:
    """Collectives summed up by their kind and by what they carry."""
    found: dict[tuple[str, str], list[int]] = {}
    for collective in collectives:
        sums = found.setdefault((collective.kind, purpose(collective, parameters)), [0, 0])
        sums[0] += collective.calls
        sums[1] += collective.bytes
    return [
        {"kind": kind, "carries": carries, "calls": calls, "bytes": size}
        for (kind, carries), (calls, size) in found.items()
    ]


def purpose(collective: Collective, parameters: list[int]) -> str:
    """What a collective of the training step carries, from the code that it comes from.

    Args:
      parameters: the sizes of the network's.
    """
    ours = [file for file in collective.files if "/sasa_jax/" in file] or [""]
    backward = "transpose(" in collective.origin
    if ours[0].endswith("nn/batch_norm.py"):
        return "BatchNorm, backward" if backward else "BatchNorm's statistics"
    # Kernels of query, key and value may travel as one. The attention stem sums up some weights
    # before it uses them: a few small arrays more.
    others = [n for n in collective.sizes if n not in parameters and n / 3 not in parameters]
    if backward and sum(others) < 0.01 * sum(parameters):
        return "gradients"
    if "/tasks/" in ours[0] and max(collective.sizes) == 1:
        return "loss and metrics"
    return f"other: {collective.origin}, {collective.shape:.200}"


def table(rows: list[dict]) -> list[str]:
    lines = []
    for row in rows:
        if row["model"] == rows[0]["model"]:
            what = "measured" if row["measured"] else "static estimate"
            lines += [
                "",
                f"{row['devices']} x {row['device']}, {row['images_per_device']} images of "
                f"{row['image_size']} a device, {row['dtype']}: {what}",
                f"{'':24}{'ms/step':>10}{'images/s':>10}{'/resnet50':>11}{'state MB':>10}"
                f"{'temp. MB':>10}",
            ]
        relative = row["ratio_to_resnet50"]
        lines.append(
            f"{row['model']:24}{row['milliseconds']:10.1f}{row['images_per_second']:10.1f}"
            f"{'-' if relative is None else format(relative, '.2f') + 'x':>11}"
            f"{row['state_bytes'] / 1e6:10.0f}{row['temporary_bytes'] / 1e6:10.0f}"
        )
        if not row["measured"]:
            parts = row["milliseconds_by_kind"] | row["milliseconds_by_kernel"]
            lines.append("  " + ", ".join(f"{name} {ms:.1f}" for name, ms in parts.items()))
            if not row["fits"]:
                lines.append("  does not fit into the chip's memory")
            if row["without_estimate"]:
                lines.append(f"  no estimate, counted by bytes: {row['without_estimate']}")
            lines += [
                f"  {c['calls']} {c['kind']}, {c['bytes'] / 1e6:.2f} MB: {c['carries']}"
                for c in row["collectives"]
            ]
    return lines


def plot(path: Path, rows: list[dict]) -> None:
    groups: dict = {}
    for row in rows:
        group = groups.setdefault(f"{row['images_per_device']} images a device", {})
        group[row["model"]] = row["images_per_second"]
    what = "measured" if rows[0]["measured"] else "static estimate"
    common.bars(path, f"Training step, {rows[0]['device']}, {what}", groups, "images/s a device")


if __name__ == "__main__":
    common.keep_memory()
    main()
