"""The problems that the networks ask for, for benchmarks and memory tests."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """One kind of attention layer; window 7, 8 heads, shared tables, boundary "zero"."""

    height: int
    width: int
    channels: int
    layers: int  # how many of the network's attention layers have this shape
    heads: int = 8
    window: int = 7

    @property
    def name(self) -> str:
        return f"{self.height}x{self.width}x{self.channels}"

    @property
    def image(self) -> tuple[int, int, int]:
        """[H, W, C]."""
        return self.height, self.width, self.channels

    def shape(self, batch: int) -> tuple[int, int, int, int, int]:
        """[B, H, W, N, D]."""
        return batch, self.height, self.width, self.heads, self.channels // self.heads


# At 224x224. A group's first block attends at its input's resolution and pools after (section 3.2).
RESNET50 = (
    Workload(56, 56, 64, layers=3),
    Workload(56, 56, 128, layers=1),
    Workload(28, 28, 128, layers=3),
    Workload(28, 28, 256, layers=1),
    Workload(14, 14, 256, layers=5),
    Workload(14, 14, 512, layers=1),
    Workload(7, 7, 512, layers=2),
)

# One of each resolution: what the benchmark compares.
RESOLUTIONS = tuple(
    w for w in RESNET50 if w.name in ("56x56x64", "28x28x128", "14x14x256", "7x7x512")
)

# At 640x640: on each of the levels P3 to P7 one layer in the pyramid and four in each of two heads.
RETINANET = tuple(Workload(size, size, 256, layers=9) for size in (80, 40, 20, 10, 5))
