"""What can be trained: a network joined with data, a loss and a measure."""

from sasa_jax.tasks.classification import Classification

__all__ = ["Classification"]
