"""The tables of "Stand-Alone Self-Attention in Vision Models" (arXiv 1906.05909) as data.

One row is one printed row: the numbers of the paper and the network that gives them. The accounting
(`python -m sasa_jax.analysis.tables`) and the training configs
(`--config=configs/paper.py:t3.conv1_attn234`) read the same rows. Tables 1 and 3-7 are ImageNet at
224x224, table 2 is COCO at 640x640.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from sasa_jax.checks import nearest


@dataclasses.dataclass(frozen=True)
class _Printed:
    """What the rows of all tables have.

    Attributes:
        name: the row's name in configs, `t<table>.<row>`.
        label: what the paper calls the row.
        model: a name for `sasa_jax.create_model`; of a detector's row, its backbone's.
        overrides: its options where they differ from the model's defaults.
        flops: the printed FLOPS, in 10^9, a multiply-add being two.
    """

    name: str
    label: str
    model: str
    overrides: Mapping[str, Any]
    flops: float

    @property
    def table(self) -> int:
        """The table's number in the paper."""
        return int(self.name[1 : self.name.index(".")])


@dataclasses.dataclass(frozen=True)
class Row(_Printed):
    """One printed row of a classification table.

    Attributes:
        top1: the printed top-1 accuracy, in percent.
        parameters: the printed parameter count, in 10^6; None where the table has none.
        truncated: the paper cut this row's parameter count off instead of rounding it.
        repeats: the FLOPS cell says again what another row says, see `REPEATS`; it is printed but
            not counted a second time.
        held_out: the accuracy is on a 4 % of the training set held out for it, not on the
            validation set.
    """

    top1: float
    parameters: float | None = None
    truncated: bool = False
    repeats: bool = False
    held_out: bool = False


@dataclasses.dataclass(frozen=True)
class DetectionRow(_Printed):
    """One printed row of table 2.

    Attributes:
        detector: options of `sasa_jax.models.create_retinanet` where they differ from its defaults.
        parameters: the printed parameter count, in 10^6.
        ap: the printed average precisions, in percent: AP, AP50, AP75, then of small, medium and
            large objects.
        inconsistent: the printed FLOPS contradict table 1, see `INCONSISTENT`.
    """

    detector: Mapping[str, Any]
    parameters: float
    ap: tuple[float, float, float, float, float, float]
    inconsistent: bool = False


TITLES: Mapping[int, str] = {
    1: "ImageNet classification",
    2: "COCO object detection (RetinaNet on ResNet-50, 640x640)",
    3: "which groups are attention (ResNet-50, convolution stem)",
    4: "window (ResNet-50, convolution stem)",
    5: "position (ResNet-50, convolution stem)",
    6: "content (ResNet-50, convolution stem)",
    7: "attention stem (ResNet-50, full attention)",
}

REPEATS = (
    "t5.sinusoidal costs what t5.none costs; t5.relative and t6.content_on are table 1's network"
)
"""Why some FLOPS cells are not counted: `Row.repeats`."""

INCONSISTENT = (
    "in table 1 full attention costs 0.2 B more than attention behind a convolution stem, which is "
    "1.6 B at 640x640; table 2 prints no more in t2.conv_attn and 1 B less in t2.attn_attn"
)
"""Why some FLOPS of table 2 are not counted: `DetectionRow.inconsistent`."""

DETECTION_CLASSES = 90
"""Class logits of an anchor in table 2: COCO's category ids go to 90, of which 80 are used."""

_CONV_STEM = "sa_resnet50_conv_stem"
_FULL = "sa_resnet50"


def _table1() -> list[Row]:
    def row(model: str, label: str, flops: float, parameters: float, top1: float, cut=False) -> Row:
        return Row(f"t1.{model}", label, model, {}, flops, top1, parameters, truncated=cut)

    return [
        row("resnet26", "26, convolution", 4.7, 13.7, 74.5),
        row("resnet38", "38, convolution", 6.5, 19.6, 76.2),
        row("resnet50", "50, convolution", 8.2, 25.6, 76.9),
        row("sa_resnet26_conv_stem", "26, convolution stem + attention", 4.5, 10.3, 75.8),
        row("sa_resnet38_conv_stem", "38, convolution stem + attention", 5.7, 14.1, 77.1, cut=True),
        row("sa_resnet50_conv_stem", "50, convolution stem + attention", 7.0, 18.0, 77.4),
        row("sa_resnet26", "26, full attention", 4.7, 10.3, 74.8),
        row("sa_resnet38", "38, full attention", 6.0, 14.1, 76.9, cut=True),
        row("sa_resnet50", "50, full attention", 7.2, 18.0, 77.6),
    ]


def _table2() -> list[DetectionRow]:
    backbones = {
        "conv": ("resnet50", "convolution"),
        "conv_stem": (_CONV_STEM, "convolution stem + attention"),
        "attn": (_FULL, "full attention"),
    }
    # The text has attention in the FPN too, but the printed parameters ask for convolutions there.
    parts = {"conv": ("convolution", {}), "attn": ("attention", {"heads": "attention"})}

    def row(heads: str, backbone: str, flops: float, parameters: float, *ap: float):
        (model, of_model), (of_heads, detector) = backbones[backbone], parts[heads]
        return DetectionRow(
            f"t2.{heads}_{backbone}",
            f"{of_heads}, on {of_model}",
            model,
            {},
            flops,
            detector,
            parameters,
            ap,
            inconsistent=backbone == "attn",
        )

    return [
        row("conv", "conv", 182, 33.4, 36.5, 54.3, 39.0, 18.3, 40.6, 51.7),
        row("conv", "conv_stem", 173, 25.9, 36.8, 54.6, 39.3, 18.4, 41.1, 51.7),
        row("conv", "attn", 173, 25.9, 36.2, 54.0, 38.7, 17.5, 40.3, 51.7),
        row("attn", "conv_stem", 111, 22.0, 36.6, 54.3, 39.1, 19.0, 40.7, 51.1),
        row("attn", "attn", 110, 22.0, 36.6, 54.5, 39.2, 18.5, 40.6, 51.6),
    ]


def _table3() -> list[Row]:
    def row(name: str, attention: tuple[int, ...], flops: float, parameters: float, top1: float):
        label = "attention in " + (" ".join(map(str, attention)) or "none")
        return Row(
            f"t3.{name}",
            label,
            _CONV_STEM,
            {"attention_groups": attention},
            flops,
            top1,
            parameters,
            truncated=name == "attn12_conv34",
            held_out=True,
        )

    return [
        row("attn1234", (1, 2, 3, 4), 7.0, 18.0, 80.2),
        row("conv1_attn234", (2, 3, 4), 7.3, 18.1, 80.7),
        row("conv12_attn34", (3, 4), 7.5, 18.5, 80.7),
        row("conv123_attn4", (4,), 8.0, 20.8, 80.2),
        row("conv1234", (), 8.2, 25.6, 79.5),
        row("attn1_conv234", (1,), 7.9, 25.5, 79.7),
        row("attn12_conv34", (1, 2), 7.8, 25.0, 79.6),
        row("attn123_conv4", (1, 2, 3), 7.2, 22.7, 79.9),
    ]


def _table4() -> list[Row]:
    printed = {3: (6.6, 76.4), 5: (6.7, 77.2), 7: (7.0, 77.4), 9: (7.3, 77.7), 11: (7.7, 77.6)}
    return [
        Row(f"t4.k{k}", f"{k}x{k}", _CONV_STEM, {"window": k}, flops, top1)
        for k, (flops, top1) in printed.items()
    ]


def _table5() -> list[Row]:
    def row(position: str, label: str, flops: float, top1: float, repeats: bool) -> Row:
        return Row(
            f"t5.{position}",
            label,
            _CONV_STEM,
            {"position": position},
            flops,
            top1,
            parameters=18.0,
            repeats=repeats,
            held_out=True,
        )

    return [
        row("none", "none", 6.9, 77.6, repeats=False),
        row("sinusoidal", "absolute sinusoidal", 6.9, 78.2, repeats=True),
        row("relative", "relative", 7.0, 80.2, repeats=True),
    ]


def _table6() -> list[Row]:
    off = {"content": False}
    on = {"content": True}
    return [
        Row("t6.content_off", "q.r", _CONV_STEM, off, 6.1, 76.9, 16.7, truncated=True),
        Row("t6.content_on", "q.k + q.r", _CONV_STEM, on, 7.0, 77.4, 18.0, repeats=True),
    ]


def _table7() -> list[Row]:
    return [
        Row("t7.plain", "plain attention", _FULL, {"stem_values": "plain"}, 7.1, 76.2),
        Row("t7.conv_values", "convolution for values", _FULL, {"stem_values": "conv"}, 7.4, 77.2),
        Row("t7.spatial", "spatially aware values", _FULL, {"stem_values": "spatial"}, 7.2, 77.6),
    ]


ROWS: Mapping[str, Row] = {
    row.name: row
    for table in (_table1, _table3, _table4, _table5, _table6, _table7)
    for row in table()
}
"""Every row on ImageNet by name, in the paper's order."""

DETECTION_ROWS: Mapping[str, DetectionRow] = {row.name: row for row in _table2()}
"""Every row on COCO by name, in the paper's order."""


def find_row(name: str) -> Row | DetectionRow:
    """The row called `name`, such as "t3.conv1_attn234" or "t2.attn_attn".

    Raises:
        ValueError: no row has that name; the message suggests the nearest and lists them all.
    """
    rows = {**ROWS, **DETECTION_ROWS}
    if name in rows:
        return rows[name]
    by_table = ";\n".join(
        f"  table {table}: " + ", ".join(row.name for row in rows.values() if row.table == table)
        for table in TITLES
    )
    raise ValueError(
        f"row must be one of the paper's; got {name!r}{nearest(name, rows)}. They are\n{by_table}"
    )
