"""Runs a folder of --format=torch with PyTorch and safetensors alone."""

import sys

import numpy as np
import torch

folder, inputs, outputs = sys.argv[1:]
sys.path.insert(0, folder)
import sasa_torch  # noqa: E402

model = sasa_torch.load(folder)
with np.load(inputs) as arrays, torch.inference_mode():
    images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2)
    np.savez(outputs, logits=model(model.normalise(images)).numpy())
