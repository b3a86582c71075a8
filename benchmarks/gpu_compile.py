"""Compiles a GPU kernel of local attention for a compute capability, on any machine."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp

from sasa_jax.ops.local_attention.checks import checked_options
from sasa_jax.ops.local_attention.gpu_triton.constants import Launch, launch_of

TYPES = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16"}
ALWAYS_FLOAT32 = ("log_sum_ptr", "delta_ptr", "table_out_ptr")


@dataclass(frozen=True)
class Compiled:
    """What came of it; registers of a thread, bytes of spilled ones and of shared memory."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    launch: Launch
    ptx: str
    cubin: bytes


def compiled(
    kernel: str,
    shape: tuple[int, int, int, int, int],
    dtype: str,
    capability: int,
    window: int = 7,
    *,
    boundary: str = "zero",
    content: bool = True,
    tables: bool = True,
    per_head: bool = False,
    packed: bool = False,
) -> Compiled:
    """Compiled as `launch` has it compiled; shape is [B, H, W, N, D]."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sasa_jax.ops.local_attention.gpu_triton import kernels

    launch = launch_of(
        kernel,
        checked_options(window, boundary, None),
        shape,
        jnp.dtype(dtype),
        content=content,
        tables=tables,
        per_head=per_head,
        packed=packed,
    )
    function = getattr(kernels, f"local_attention_{kernel}")
    signature = {
        name: "constexpr"
        if name in launch.constants
        else "*fp32"
        if name in ALWAYS_FLOAT32
        else TYPES[dtype]
        for name in function.arg_names
    }
    aligned = {
        (place,): [["tt.divisibility", 16]]  # as jax-triton has it
        for place, name in enumerate(function.arg_names)
        if name not in launch.constants
    }
    found = triton.compile(
        ASTSource(function, signature, launch.constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": launch.warps, "num_stages": launch.stages},
    )
    ptx = found.asm["ptx"]
    registers, spilled = _assembled(Path(triton.__file__).parent, ptx, capability)
    return Compiled(registers, spilled, found.metadata.shared, launch, ptx, found.asm["cubin"])


def _assembled(triton: Path, ptx: str, capability: int) -> tuple[int, int]:
    """Registers of a thread, and bytes that it stores because they do not do."""
    architecture = f"sm_{capability}" + "a" * (capability >= 90)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        assembler = triton / "backends" / "nvidia" / "bin" / "ptxas"
        told = subprocess.run(
            [assembler, "-v", f"-arch={architecture}", source, "-o", source.with_suffix(".cubin")],
            check=True,
            capture_output=True,
            text=True,
        ).stderr
    registers = re.search(r"Used (\d+) registers", told)
    spilled = re.search(r"(\d+) bytes spill stores", told)
    return int(registers[1]), int(spilled[1])
