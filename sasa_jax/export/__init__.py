"""A trained network in the formats of others, and weights of others for ours."""

from sasa_jax.export.errors import CheckFailedError, ExportError
from sasa_jax.export.exporting import FORMATS, export
from sasa_jax.export.folder import read_safetensors
from sasa_jax.models.pretrained import from_torch

__all__ = [
    "FORMATS",
    "CheckFailedError",
    "ExportError",
    "export",
    "from_torch",
    "read_safetensors",
]
