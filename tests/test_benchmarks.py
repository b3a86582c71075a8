"""The benchmarks run and print what they promise; the TPU estimate counts what is there."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import local_attention, memory, train_step
from benchmarks.contenders import contenders
from benchmarks.tpu_bundles import count
from benchmarks.tpu_program import Chip, Collective, Program
from sasa_jax.ops.local_attention.workloads import Workload

ROOT = Path(__file__).resolve().parents[1]
HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None

# A loop of 10 turns over four bundles and the branch's four, which waits twice, moves 64 bytes and
# in turn 3 does two bundles more.
BUNDLES = """
LB: loop body

     0   :  { %s1_s0 = smov 0 /* a comment ;; with a separator */  ;;  %s2_s1 = smov 3 }
   0x1 LB: > { %s3_s0 = sphi %s1_s0, %s4_s0  ;;  %p5_p0 = scmp.ne.s32.totalorder %s3_s0, %s2_s1 }
   0x2   : > { %6 = sbr.rel (%p5_p0) target bundleno = 9 (0x9), region = 2  ;;  %7 = vnop }
   0x3   :  {}
   0x4   :  {}
   0x5   :  {}
   0x6   :  {}
   0x7   : > { %v8_v0 = vadd.f32 %v7_v0, %v7_v0 }
   0x8   : > { %9 = vst [vmem:[%s2_s1] sm:$0xff] /*vst_source=*/%v8_v0 }
   0x9 PF: > { %s4_s0 = sadd.s32 1, %s3_s0 }
   0xa   : > { %p10_p1 = scmp.ge.s32.totalorder %s4_s0, BOUND /* loop exit test */ }
   0xb   : > { %11 = dma.hbm_to_vmem [thread:$0]  (!%p5_p0), /*hbm=*/%s2_s1, \
/*size_in_granules=*/2, /*vmem=*/%s2_s1 /*
window_bounds: (1, 1) */ }
   0xc   :  { %12 = sbr.rel (!%p10_p1) target bundleno = 1 (0x1), region = 1 }
   0xd   :  {}
   0xe   :  {}
   0xf   :  {}
  0x10   :  {}
  0x11   :  { %13 = vsyncpa [#allocation1], 1 }
"""


def test_bundles_are_counted_as_the_core_issues_them():
    found = count(BUNDLES.replace("BOUND", "10"))
    once = 1 + 1  # the first bundle and the last
    turn = 1 + 5 + 8
    assert found.cycles == once + 10 * turn + 2
    assert found.hbm_bytes == 64
    assert found.visits[(7, 9)] == 1


def test_a_loop_of_unknown_length_is_refused():
    with pytest.raises(ValueError, match="bundle 0xc is not known"):
        count(BUNDLES.replace("BOUND", "%s99_s9"))


PROGRAM = """HloModule jit_step

FileNames
1 "/here/sasa_jax/tasks/classification.py"
2 "/there/optax/losses.py"

FileLocations
1 {file_name_id=1 function_name_id=1 line=1 end_line=1 column=1 end_column=1}
2 {file_name_id=2 function_name_id=1 line=1 end_line=1 column=1 end_column=1}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=1}

%inside (a: f32[8,8]) -> f32[8,8] {
  %a = f32[8,8]{1,0} parameter(0)
  ROOT %c = f32[8,8]{1,0} convolution(%a, %a), dim_labels=bf_io->bf
}

%body (x: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %x = (s32[], f32[8,8]) parameter(0)
  %i = s32[] get-tuple-element(%x), index=0
  %fusion.2 = f32[8,8]{1,0} fusion(%i), calls=%inside, backend_config={"estimated_cycles":"1000"}
  ROOT %t = (s32[], f32[8,8]) tuple(%i, %fusion.2)
}

%condition (x: (s32[], f32[8,8])) -> pred[] {
  %y = (s32[], f32[8,8]) parameter(0)
  %bound = s32[] constant(7)
  %j = s32[] get-tuple-element(%y), index=0
  ROOT %lt = pred[] compare(%j, %bound), direction=LT
}

ENTRY %main (p: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  %zero = s32[] constant(2)
  %copy.1 = f32[8,8]{1,0} copy(%p), backend_config={"estimated_cycles":"500"}
  %start = (s32[], f32[8,8]) tuple(%zero, %copy.1)
  %loop = (s32[], f32[8,8]) while(%start), condition=%condition, body=%body
  %sum = f32[] all-reduce(%p), to_apply=%add, metadata={op_name="step/sum" stack_frame_id=2}
  ROOT %big = f32[64,64]{1,0} sort(%p)
}
"""


def test_a_program_is_added_up_by_kind_with_its_loops():
    program = Program(PROGRAM, Chip(clock=1e6, bandwidth=1e9, memory=1e9), files={}, kernels={})
    moved = 4 * (64 * 64 + 8 * 8) / 1e6  # by the sort, of which nothing else is known
    expected = {"convolutions": 5.0, "copies": 0.5, "no estimate, bytes": moved}  # from 2 to 7
    assert program.kinds == pytest.approx(expected)
    assert program.uncounted == {"sort": 1}
    (collective,) = program.collectives()
    assert collective.files == ("/there/optax/losses.py", "/here/sasa_jax/tasks/classification.py")
    assert train_step.purpose(collective, [64]) == "loss and metrics"


@pytest.mark.parametrize(
    "origin, file, shape, carries",
    [
        (
            "jit(step)/transpose(jvp())/dot",
            "models/resnet.py",
            "(f32[8,8]{1,0}, f32[8]{0})",
            "grad",
        ),
        ("jit(step)/transpose(jvp())/dot", "nn/attention.py", "f32[8,24]{1,0}", "grad"),
        ("jit(step)/transpose(jvp())/dot", "models/resnet.py", "f32[999]{0}", "other"),
        ("jit(step)/jvp()/dot", "models/resnet.py", "f32[8,8]{1,0}", "other"),
        ("jit(step)/jvp()/reduce_sum", "nn/batch_norm.py", "f32[8]{0}", "BatchNorm's statistics"),
    ],
)
def test_what_a_collective_carries(origin, file, shape, carries):
    collective = Collective("all-reduce", origin, (f"/here/sasa_jax/{file}",), shape, calls=2)
    assert train_step.purpose(collective, parameters=[64, 8]).startswith(carries)
    assert collective.bytes == 2 * 4 * sum(collective.sizes)


def test_operator_rows(capsys):
    local_attention.main(["--quick", "--json", "--shapes", "7x7x512", "--batch", "1"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["direction"] for row in rows} == {"forward", "forward_backward"}
    assert {"definition", "convolution_3x3"} < {row["implementation"] for row in rows}
    assert sum(row["picked"] for row in rows) == 2
    for row in rows:
        assert row["shape"] == "7x7x512" and row["dtype"] == "float32" and row["measured"]
        assert row["milliseconds"] > 0
        assert row["ratio_to_definition"] > 0
        torch_row = row["implementation"] == "pytorch_unfold"
        assert (row["temporary_bytes"] is None) == torch_row
        assert "ratio_to_unfold" in row


def test_only_the_definition_keeps_windows_for_the_backward_pass():
    def kept(window: int) -> dict[str, int]:
        workload = Workload(8, 8, 16, layers=1, window=window)
        found = contenders(workload, 1, "float32", "cpu")
        return {name: memory.kept(contender) for name, contender in found.items()}

    narrow, wide = kept(3), kept(9)
    for name in narrow.keys() - {"definition", "convolution_3x3"}:
        assert wide[name] == pytest.approx(narrow[name], rel=0.05), name  # the tables grow
    assert wide["definition"] > 4 * narrow["definition"]


@pytest.mark.slow
def test_training_step_rows(capsys):
    train_step.main(["--quick", "--json", "--models", "resnet26", "--batch", "1"])
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert row["model"] == "resnet26" and row["platform"] == "cpu" and row["measured"] is True
    assert row["images_per_second"] > 0
    assert row["ratio_to_resnet50"] is None  # it did not take part


def test_ratio_is_to_resnet50_of_the_same_run():
    assert train_step.ratio({"resnet50": 2.0, "sa_resnet50": 3.0}, "sa_resnet50") == 1.5


@pytest.mark.skipif(HAS_LIBTPU, reason="libtpu is here")
def test_without_libtpu_an_estimate_says_what_to_install():
    with pytest.raises(SystemExit, match=r'pip install "jax\[tpu\]=='):
        train_step.main(["--estimate", "v5e:2x2"])


KERNEL = """
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from benchmarks.tpu_estimate import Topology

def kernel(turns, x, y):
    y[...] = jax.lax.fori_loop(0, turns, lambda i, z: z * x[...] + 1, x[...])

def run(turns):
    block = pl.BlockSpec((8, 128), lambda i: (i, 0))
    return lambda x: pl.pallas_call(
        lambda *refs: kernel(turns, *refs), grid=8, in_specs=[block], out_specs=block,
        out_shape=x, name="repeat")(x)

topology = Topology("v5e:2x2")
for turns in (100, 200, 400):
    compiled, estimate = topology.compile(run(turns), jax.ShapeDtypeStruct((64, 128), jnp.float32))
    (found,) = estimate.kernels
    print(round(found.compute_ms / 1000 * topology.chip.clock))
"""


@pytest.mark.skipif(not HAS_LIBTPU, reason="libtpu is not installed")
def test_a_compiled_kernel_is_counted_with_its_loops():
    # In a process of its own: libtpu is told when it is loaded what to write.
    done = subprocess.run(
        [sys.executable, "-c", KERNEL], cwd=ROOT, capture_output=True, text=True, check=True
    )
    short, middle, long = map(int, done.stdout.split())
    assert long - middle == 2 * (middle - short)
    assert (middle - short) % (8 * 100) == 0
    assert short > 8 * 100
