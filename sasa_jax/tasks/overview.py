"""What a run is going to do, before it does it."""

import platform
import time
from pathlib import Path
from typing import Any

import flax
import jax
from clu import parameter_overview

from sasa_jax import training
from sasa_jax.analysis import count, format_table
from sasa_jax.tasks.classification import Classification
from sasa_jax.tasks.detection import Detection

Task = Classification | Detection


def first_screen(task: Task, config: dict[str, Any], plan: training.Plan, workdir: Path) -> str:
    """Devices, data, length, learning rate, precision, and the network's parameters and FLOPS."""
    devices, model = jax.devices(), config["model"]
    size, batch = task.image_size, config["batch_size"]
    saved = training.saved_step(workdir)
    counts = count(task.build_model, size)
    lines = {
        "devices": f"{len(devices)} x {devices[0].device_kind} ({jax.default_backend()}), "
        f"{jax.process_count()} process; mesh: data={len(devices)}",
        "versions": f"Python {platform.python_version()}, jax {jax.__version__}, "
        f"flax {flax.__version__}",
        "train data": task.data.train.description,
        "eval data": task.data.evaluation.description,
        "images": f"{size}x{size}",
        **task.description(),
        "steps": f"{plan.total_steps:,} ({plan.epochs:.1f} epochs), warm-up {plan.warmup_steps:,}",
        "batch": f"{batch}, {batch // len(devices)} a device"
        + f", in {config['accumulation_steps']} micro-batches" * (config["accumulation_steps"] > 1),
        "learning rate": f"{plan.learning_rate:g} at its peak"
        + f" = {config['learning_rate']:g} x {batch} / {config['reference_batch_size']}"
        * (config["reference_batch_size"] is not None),
        "precision": f"{model['dtype'] or 'float32'} computation; "
        f"{model['param_dtype'] or 'float32'} parameters; float32 statistics, softmax and loss",
        "workdir": f"{workdir}" + (f", holds step {saved}" if saved else ""),
    }
    text = [f"{name:14} {line}" for name, line in lines.items()]
    if task.data.missing:
        text.append(f"data: not found here. {task.data.missing}")
    text += ["", f"{task.name}, one image of {size}x{size}:", format_table(counts)]
    return "\n".join([*text, ""])


def dry_run(task: Task, config: dict[str, Any], plan: training.Plan) -> str:
    """Compiles the training step, which takes as long as it does, and says what it would need."""
    mesh = training.data_mesh()
    with jax.set_mesh(mesh):
        program = training.make_program(task, config, plan, mesh)
        begin = time.perf_counter()
        compiled = program.step.lower(program.state, program.batch).compile()
    seconds = time.perf_counter() - begin
    overview = parameter_overview.get_parameter_overview(program.state.params, include_stats=False)
    memory = training.step_memory(compiled)
    text = [overview, "", f"compiled the training step in {seconds:.1f} s"]
    if memory is not None:
        text.append(
            f"memory of one step on each device, as XLA plans it for {jax.default_backend()}: "
            f"{_size(memory.total)} = {_size(memory.arguments)} state and batch + "
            f"{_size(memory.temporaries)} activations and other temporaries + "
            f"{_size(memory.new_outputs)} new results"
        )
    text.append(task.describe_parameters())
    return "\n".join([*text, "dry run: no step was taken"])


def _size(number: int) -> str:
    return f"{number / 2**20:,.0f} MiB" if number < 2**33 else f"{number / 2**30:,.1f} GiB"
