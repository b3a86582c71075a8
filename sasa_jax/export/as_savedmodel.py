"""--format=savedmodel: for TensorFlow and what serves its models; needs no JAX to run."""

from pathlib import Path
from typing import Any

import jax

from sasa_jax.export.folder import describe, write_config
from sasa_jax.export.serving import Network, plain_xla, serving_function


def refuses() -> str | None:
    """Why this JAX cannot write one that TensorFlow reads, if so."""
    if jax.__version_info__ <= (0, 10, 2):
        return None
    return (
        f"--format=savedmodel needs JAX 0.10.2 (Python 3.11), and this is {jax.__version__}: "
        "TensorFlow 2.21, the newest, does not read what it writes. Run it with Python 3.11"
    )


def write(network: Network, folder: Path) -> None:
    """Writes a SavedModel, for any number of images on CPU, GPU and TPU, and config.json.

        model = tf.saved_model.load("folder")
        model.signatures["serving_default"](images=images)["logits"]   # uint8 [B, S, S, 3]

    The parameters are its variables. Of a detector it gives the raw outputs, "logits" and
    "box_codes": TensorFlow 2.21 does not read the top-k of the decoding.
    """
    import tensorflow as tf  # an extra, which jax2tf imports too
    from jax.experimental import jax2tf

    shapes = network.input_shapes(1, decode=False)
    converted = jax2tf.convert(
        serving_function(network, decode=False),
        polymorphic_shapes=[None, *("(b, ...)" for _ in shapes)],
        native_serialization_platforms=("cpu", "cuda", "tpu"),
        with_gradient=False,
    )
    module = tf.Module()
    module.parameters = tf.nest.map_structure(tf.Variable, network.variables)

    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec((None, *x.shape[1:]), x.dtype, name) for name, x in shapes.items()
        ],
    )
    def serve(*inputs: Any) -> dict[str, Any]:
        return converted(module.parameters, *inputs)

    module.serve = serve
    with plain_xla():
        signatures = {"serving_default": serve.get_concrete_function()}
    tf.saved_model.save(module, str(folder), signatures)
    write_config(folder, describe(network, "savedmodel"))
