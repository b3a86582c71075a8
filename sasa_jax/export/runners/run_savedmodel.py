"""Runs a folder of --format=savedmodel with TensorFlow alone."""

import sys

import numpy as np
import tensorflow as tf

folder, inputs, outputs = sys.argv[1:]
model = tf.saved_model.load(folder)
with np.load(inputs) as arrays:
    found = model.signatures["serving_default"](images=tf.constant(arrays["images"]))
np.savez(outputs, **{name: tensor.numpy() for name, tensor in found.items()})
