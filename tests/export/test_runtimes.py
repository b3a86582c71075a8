"""Every format, loaded by its own runtime in a fresh process."""

import json

import jax
import numpy as np
import pytest

from sasa_jax.export.check import TOLERANCE, run
from sasa_jax.export.exporting import FORMATS
from sasa_jax.export.serving import Network, plain_xla, serving_function
from tests.export.common import absent, digits, noise, raw_outputs


def skip_without(format):
    if missing := absent(format):
        pytest.skip(f"{', '.join(missing)} not installed: {format} cannot be written and run")
    if reason := FORMATS[format].refuses():
        pytest.skip(reason)


# safetensors: test_export.py
@pytest.mark.parametrize("format", [name for name in FORMATS if name != "safetensors"])
def test_classifier(classifier, format, tmp_path):
    skip_without(format)
    FORMATS[format].write(Network.of(classifier), tmp_path)
    images = noise(classifier, 3)
    outputs = run(tmp_path, format, {"images": images})
    (logits,) = raw_outputs(classifier, images)
    assert outputs.keys() == {"logits"}
    assert np.ptp(logits, axis=0).min() > 0.01  # the images are told apart
    assert np.abs(outputs["logits"] - logits).max() < TOLERANCE

    description = json.loads((tmp_path / "config.json").read_text())
    assert description["class_names"] == list("0123456789")
    assert description["preprocessing"]["image_size"] == 32
    assert description["preprocessing"]["mean"] == [123.675, 116.28, 103.53]
    assert description["step"] == 7


# XLA takes half a minute for each, most of it in the fresh process.
@pytest.mark.slow
@pytest.mark.parametrize("format", [name for name in FORMATS if FORMATS[name].detection])
def test_detector(detector, format, tmp_path):
    skip_without(format)
    FORMATS[format].write(Network.of(detector), tmp_path)
    images, sizes = noise(detector, 3), np.array([[96, 96], [96, 50], [31, 96]], np.int32)
    outputs = run(tmp_path, format, {"images": images, "sizes": sizes})
    logits, codes = raw_outputs(detector, images)
    assert np.abs(outputs["logits"] - logits).max() < TOLERANCE
    assert np.abs(outputs["box_codes"] - codes).max() < TOLERANCE
    if format == "savedmodel":
        return  # raw outputs are all that it gives

    found = jax.device_get(jax.jit(detector.task.decode)(logits, codes, sizes))
    assert (outputs["count"] == found.count).all() and found.count.min() > 3
    np.testing.assert_allclose(outputs["scores"], found.scores, atol=1e-4)
    np.testing.assert_allclose(outputs["boxes"], found.boxes, atol=1e-2)
    assert (outputs["boxes"] <= np.tile(sizes, 2)[:, None]).all()
    assert (outputs["classes"] == found.classes).all()


def test_no_kernel_of_one_platform_is_exported(classifier, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    network = Network.of(classifier)
    shapes = network.input_shapes(2).values()
    with plain_xla():
        program = jax.make_jaxpr(serving_function(network))(network.variables, *shapes)
    assert "pallas" not in str(program)


def test_a_run_in_bfloat16_is_exported_in_float32(data_dir):
    half = digits(data_dir, model__dtype="bfloat16", model__param_dtype="bfloat16")
    network = Network.of(half)
    outputs = jax.jit(network.task().predict)(network.variables, noise(half, 2))
    assert outputs.dtype == np.float32
    values = {x.dtype for x in jax.tree.leaves(network.variables)}
    assert values == {np.dtype(np.float32)}
    assert network.task().model.classifier.kernel.dtype == np.float32
