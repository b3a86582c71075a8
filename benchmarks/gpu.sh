#!/bin/sh
# On a machine with an NVIDIA GPU: the GPU kernels' tests there, then the operator and the training
# step with their peers in the same run. Leaves benchmarks/results/local_attention_<device>.json,
# train_step_<device>.json, their pictures and gpu_<date>.log; what fails does not keep the rest from
# running, and in the end the exit status is 1. Half an hour, perhaps, and the installation; its
# commands have been run on an H100, the training step not to its end.
#
#     make bench-gpu                      # PyTorch's CUDA wheels for the peers come from PyPI
#     BATCH=256 make bench-gpu            # images a device, 256 by default
set -eu
cd "$(dirname "$0")/.."
venv=.venv-bench-gpu
batch="${BATCH:-256}"
log="benchmarks/results/gpu_$(date +%F).log"
if ! nvidia-smi --list-gpus >/dev/null 2>&1; then
    echo "error: nvidia-smi finds no NVIDIA GPU on this machine" >&2
    exit 1
fi

if [ ! -e "$venv/installed" ]; then
    "${PYTHON:-python3}" -m venv "$venv"
    # PyTorch first and with a Triton of its own: ours comes last and is the one that stays.
    "$venv/bin/python" -m pip install --quiet torch
    "$venv/bin/python" -m pip install --quiet --editable ".[test,gpu]"
    touch "$venv/installed"
fi
python="$venv/bin/python"
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}"
# Without it all that follows would run on the CPU.
"$python" -c 'import jax, sys; sys.exit(jax.default_backend() != "gpu" and "error: no GPU for JAX")'

{
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv
    failed=0
    # Not the multi-device tests, which want four devices.
    JAX_PLATFORMS=cuda XLA_PYTHON_CLIENT_PREALLOCATE=false "$python" -m pytest -q -n 8 -m "" -k gpu \
        tests/ops/test_gpu_triton.py tests/ops/test_local_attention.py \
        tests/ops/test_local_attention_cases.py || failed=1
    "$python" benchmarks/local_attention.py --batch "$batch" \
        --shapes 56x56x64 56x56x128 28x28x128 28x28x256 14x14x256 14x14x512 7x7x512 \
        --contenders gpu_triton definition convolution_3x3 pytorch_unfold flex_attention || failed=1
    "$python" benchmarks/train_step.py --peer --batch "$batch" || failed=1
    echo "finished, failed: $failed"
} 2>&1 | tee "$log"
grep -q "^finished, failed: 0" "$log"
