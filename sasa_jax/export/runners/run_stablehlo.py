"""Runs a folder of --format=stablehlo with JAX alone."""

import sys
from pathlib import Path

import numpy as np
from jax import export

folder, inputs, outputs = sys.argv[1:]
exported = export.deserialize((Path(folder) / "model.stablehlo").read_bytes())
with np.load(inputs) as arrays:
    np.savez(outputs, **exported.call(*(arrays[name] for name in arrays)))
