"""Runs a folder of --format=safetensors with this project."""

import sys
from pathlib import Path

import jax
import numpy as np

from sasa_jax.export import read_safetensors
from sasa_jax.export.serving import Network, serving_function

folder, inputs, outputs = sys.argv[1:]
config, class_names, step, variables = read_safetensors(Path(folder))
network = Network(config, class_names, step, variables)
with np.load(inputs) as arrays:
    results = jax.jit(serving_function(network))(variables, *(arrays[name] for name in arrays))
np.savez(outputs, **results)
