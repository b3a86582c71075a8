"""--format=safetensors: the weights under PyTorch's names, and what is needed to use them."""

from pathlib import Path

from sasa_jax.export.folder import describe, write_config, write_weights
from sasa_jax.export.serving import Network


def write(network: Network, folder: Path) -> None:
    """Writes model.safetensors and config.json; `sasa_jax.load` reads them back."""
    write_weights(folder, network, "safetensors")
    write_config(folder, describe(network, "safetensors"))
