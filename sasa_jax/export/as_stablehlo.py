"""--format=stablehlo: the whole computation in one file, which JAX alone runs."""

from pathlib import Path

import jax
from jax import export

from sasa_jax.export.folder import describe, write_config
from sasa_jax.export.serving import Network, plain_xla, serving_function

MODEL = "model.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")


def write(network: Network, folder: Path) -> None:
    """Writes model.stablehlo, for cpu, cuda and tpu and any number of images, and config.json.

        from jax import export

        exported = export.deserialize(Path("model.stablehlo").read_bytes())
        logits = jax.jit(exported.call)(images)["logits"]   # images uint8 [B, S, S, 3]

    The parameters are inside, so that one file is the model and nothing but JAX reads it; the file
    is as large as they are, 4 bytes each. What of a detector's outputs is not used under `jax.jit`
    is not computed.
    """
    serve = serving_function(network)

    def with_parameters(*inputs: jax.Array) -> dict[str, jax.Array]:
        return serve(network.variables, *inputs)

    (batch,) = export.symbolic_shape("b")
    inputs = network.input_shapes(batch).values()
    with plain_xla():
        exported = export.export(jax.jit(with_parameters), platforms=PLATFORMS)(*inputs)
    (folder / MODEL).write_bytes(exported.serialize())
    write_config(folder, describe(network, "stablehlo"))
