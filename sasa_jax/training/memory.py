"""What one step needs, asked of the compiler."""

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each device, XLA's own count for the backend that compiled the step.

    Attributes:
        arguments: state and batch, which are there before the step.
        temporaries: activations and other intermediates, at their peak.
        new_outputs: results that do not reuse the place of an argument.
    """

    arguments: int
    temporaries: int
    new_outputs: int

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries + self.new_outputs


def step_memory(compiled: jax.stages.Compiled) -> Memory | None:
    """The memory of a compiled step; None where the backend does not tell."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    return Memory(
        arguments=analysis.argument_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
        new_outputs=analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
    )
