"""Runs a folder of --format=onnx with ONNX Runtime alone."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

folder, inputs, outputs = sys.argv[1:]
session = onnxruntime.InferenceSession(
    Path(folder) / "model.onnx", providers=["CPUExecutionProvider"]
)
names = [output.name for output in session.get_outputs()]
with np.load(inputs) as arrays:
    results = session.run(names, dict(arrays))
np.savez(outputs, **dict(zip(names, results, strict=True)))
