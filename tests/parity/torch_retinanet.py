"""Independent float64 PyTorch reference of the detector and its loss (see torch_reference).

Anchors, matching, focal and box loss are written out as loops and as the formulas of the papers
that introduced them (arXiv 1708.02002, 1506.01497).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.parity.torch_networks import ResNet
from tests.parity.torch_reference import BatchNorm, Convolution, LocalSelfAttention, parameter


class BiasedConvolution(Convolution):
    """Convolution with stride 1 and a bias, the map's size kept."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__(inputs, outputs, size, 1, (size // 2, size // 2))
        self.bias = parameter(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.bias[:, None, None]


def spatial(inputs: int, channels: int, stride: int, attention: dict | None) -> nn.Module:
    """A 3x3 convolution, or attention whose pool is left to `call`."""
    if attention is None:
        return Convolution(inputs, channels, 3, stride, (1, 1))
    return LocalSelfAttention(channels, **attention)


def call(layer: nn.Module, x: Tensor, stride: int, residual: bool) -> Tensor:
    """The layer, for attention with its residual and pool; the pool leaves no pixel out."""
    y = layer(x)
    if isinstance(layer, LocalSelfAttention):
        if residual:
            y = y + x
        if stride == 2:
            y = F.avg_pool2d(y, 2, ceil_mode=True)
    return y


class FeaturePyramid(nn.Module):
    """Lateral 1x1s, sums with the doubled coarser map, a layer for each level, BN."""

    def __init__(
        self,
        inputs: list[int],
        channels: int,
        first: int,
        attention: dict | None,
        residual: bool,
        coarse_from: str,
        **norm: float | int | None,
    ) -> None:
        super().__init__()
        self.first, self.residual, self.coarse_from = first, residual, coarse_from
        for index, width in enumerate(inputs):
            self.add_module(f"lateral{first + index}", Convolution(width, channels, 1, 1, (0, 0)))
        for index in range(5):
            wide = coarse_from == "c5" and index == 3
            layer = spatial(
                inputs[-1] if wide else channels, channels, self.stride(index), attention
            )
            self.add_module(f"p{first + index}", layer)
            self.add_module(f"bn{first + index}", BatchNorm(channels, **norm))

    def stride(self, index: int) -> int:
        return 2 if index >= 3 else 1

    def level(self, index: int, x: Tensor) -> Tensor:
        name = self.first + index
        y = call(getattr(self, f"p{name}"), x, self.stride(index), self.residual)
        return getattr(self, f"bn{name}")(y)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        fine, middle, coarse = (
            getattr(self, f"lateral{self.first + index}")(x) for index, x in enumerate(maps)
        )
        middle = middle + self.double(coarse, middle)
        fine = fine + self.double(middle, fine)
        p3, p4, p5 = (self.level(index, x) for index, x in enumerate((fine, middle, coarse)))
        p6 = self.level(3, maps[-1] if self.coarse_from == "c5" else p5)
        return [p3, p4, p5, p6, self.level(4, F.relu(p6))]

    @staticmethod
    def double(x: Tensor, like: Tensor) -> Tensor:
        doubled = F.interpolate(x, scale_factor=2, mode="nearest")
        return doubled[:, :, : like.shape[2], : like.shape[3]]


class Head(nn.Module):
    """A tower shared by the levels, with BNs of their own, and the outputs of each place."""

    def __init__(
        self,
        channels: int,
        outputs: int,
        depth: int,
        names: list[str],
        attention: dict | None,
        residual: bool,
        **norm: float | int | None,
    ) -> None:
        super().__init__()
        self.depth, self.residual = depth, residual
        for index in range(1, depth + 1):
            self.add_module(f"layer{index}", spatial(channels, channels, 1, attention))
            bns = nn.ModuleDict({name: BatchNorm(channels, **norm) for name in names})
            self.add_module(f"bn{index}", bns)
        self.last = spatial(channels, channels, 1, attention) if attention else None
        self.output = BiasedConvolution(channels, outputs, 1 if attention else 3)

    def forward(self, x: Tensor, name: str) -> Tensor:
        for index in range(1, self.depth + 1):
            x = call(getattr(self, f"layer{index}"), x, 1, self.residual)
            x = F.relu(getattr(self, f"bn{index}")[name](x))
        return self.output(x if self.last is None else call(self.last, x, 1, self.residual))


class RetinaNet(nn.Module):
    """Takes a backbone's overrides and the options of `sasa_jax.models.create_retinanet`."""

    def __init__(
        self,
        backbone: dict,
        *,
        num_classes: int,
        anchors_per_place: int = 6,
        fpn: str = "conv",
        heads: str = "conv",
        features: int = 256,
        tower_depth: int = 4,
        coarse_from: str = "p5",
        fpn_window: int = 7,
        head_window: int = 7,
        residual: bool = False,
        **attention: object,
    ) -> None:
        super().__init__()
        norm = {
            name: backbone[f"bn_{name}"]
            for name in ("decay", "epsilon", "group_size")
            if f"bn_{name}" in backbone
        }
        groups = len(backbone["blocks"])
        widths = [int(256 * backbone["width"]) * 2**group for group in range(groups)]
        first = groups - 1
        self.names = [f"p{first + index}" for index in range(5)]
        self.num_classes = num_classes
        of_fpn = {**attention, "window": fpn_window} if fpn == "attention" else None
        of_heads = {**attention, "window": head_window} if heads == "attention" else None
        self.backbone = ResNet(**backbone, num_classes=None)
        self.fpn = FeaturePyramid(
            widths[-3:], features, first, of_fpn, residual, coarse_from, **norm
        )
        head = (tower_depth, self.names, of_heads, residual)
        self.class_head = Head(features, anchors_per_place * num_classes, *head, **norm)
        self.box_head = Head(features, anchors_per_place * 4, *head, **norm)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pyramid = self.fpn(self.backbone.features(x)[-3:])

        def outputs(head: Head, width: int) -> Tensor:
            return torch.cat(
                [
                    head(x, name).permute(0, 2, 3, 1).reshape(len(x), -1, width)
                    for name, x in zip(self.names, pyramid, strict=True)
                ],
                dim=1,
            )

        return outputs(self.class_head, self.num_classes), outputs(self.box_head, 4)


def anchor_boxes(height: int, width: int) -> Tensor:
    """Six anchors a place at levels 3 to 7, [A, 4] as (top, left, bottom, right)."""
    boxes = []
    for level in range(3, 8):
        stride = 2**level
        for row in range(math.ceil(height / stride)):
            for column in range(math.ceil(width / stride)):
                y, x = stride * (row + 0.5), stride * (column + 0.5)
                for scale in (1, math.sqrt(2)):
                    for ratio in (0.5, 1, 2):  # height over width
                        side = 4 * stride * scale
                        h, w = side * math.sqrt(ratio), side / math.sqrt(ratio)
                        boxes.append([y - h / 2, x - w / 2, y + h / 2, x + w / 2])
    return torch.tensor(boxes, dtype=torch.float64)


def detection_loss(
    logits: Tensor, codes: Tensor, anchors: Tensor, images: list[list[tuple[list[float], int]]]
) -> Tensor:
    """Focal loss plus ten times the box loss over the positive anchors of the batch.

    Args: logits [B, A, classes]; codes [B, A, 4]; anchors [A, 4]; of each image its (box, class).
    """
    total, positives = logits.new_zeros(()), 0
    for image, boxes in enumerate(images):
        for index, anchor in enumerate(anchors):
            overlaps = [overlap(anchor, torch.tensor(box)) for box, _ in boxes]
            best = max(range(len(boxes)), key=lambda k: overlaps[k]) if boxes else None
            value = overlaps[best] if boxes else 0.0
            if 0.4 <= value < 0.5:
                continue
            probability = torch.sigmoid(logits[image, index])
            right = value >= 0.5
            for label, p in enumerate(probability):
                if right and label == boxes[best][1]:
                    total = total - 0.25 * (1 - p) ** 2 * torch.log(p)
                else:
                    total = total - 0.75 * p**2 * torch.log(1 - p)
            if right:
                positives += 1
                error = codes[image, index] - code(torch.tensor(boxes[best][0]), anchor)
                total = total + 10 * F.huber_loss(
                    error, torch.zeros_like(error), reduction="sum", delta=0.1
                )
    return total / max(positives, 1)


def overlap(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two boxes."""
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    intersection = float(max(height, 0) * max(width, 0))
    areas = [float((box[2] - box[0]) * (box[3] - box[1])) for box in (a, b)]
    return intersection / (sum(areas) - intersection)


def code(box: Tensor, anchor: Tensor) -> Tensor:
    """(dy, dx, dh, dw): the box's centre and size in the anchor's."""
    height, width = anchor[2] - anchor[0], anchor[3] - anchor[1]
    dy = ((box[0] + box[2]) - (anchor[0] + anchor[2])) / 2 / height
    dx = ((box[1] + box[3]) - (anchor[1] + anchor[3])) / 2 / width
    dh = torch.log((box[2] - box[0]) / height)
    dw = torch.log((box[3] - box[1]) / width)
    return torch.stack([dy, dx, dh, dw])
