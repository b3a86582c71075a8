#!/bin/sh
# On a machine with an NVIDIA GPU: the GPU kernels' tests there, then the operator and the training
# step with their peers in the same run. Leaves benchmarks/results/local_attention_<device>.json,
# train_step_<device>.json, their pictures and gpu_<date>.log; exits with 1 if anything failed.
#
#     make bench-gpu                      # PyTorch's CUDA wheels for the peers come from PyPI
#     BATCH=256 make bench-gpu            # images a device, 256 by default
set -eu
cd "$(dirname "$0")/.."
venv=.venv-bench-gpu
batch="${BATCH:-256}"
log="benchmarks/results/gpu_$(date +%F).log"

if [ ! -e "$venv/installed" ]; then
    "${PYTHON:-python3}" -m venv "$venv"
    # PyTorch first and with a Triton of its own: ours comes last and is the one that stays.
    "$venv/bin/python" -m pip install --quiet torch
    "$venv/bin/python" -m pip install --quiet --editable ".[test,gpu]"
    touch "$venv/installed"
fi
python="$venv/bin/python"

{
    export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}"
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv
    failed=0
    # Not the multi-device tests, which want four devices.
    JAX_PLATFORMS=cuda XLA_PYTHON_CLIENT_PREALLOCATE=false "$python" -m pytest -q -m "" -k gpu \
        tests/ops/test_gpu_triton.py tests/ops/test_local_attention.py \
        tests/ops/test_local_attention_cases.py || failed=1
    "$python" benchmarks/local_attention.py --batch "$batch"
    "$python" benchmarks/train_step.py --peer --batch "$batch"
    echo "finished, tests failed: $failed"
} 2>&1 | tee "$log"
grep -q "^finished, tests failed: 0" "$log"
