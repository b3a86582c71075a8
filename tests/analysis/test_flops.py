"""Counts of built networks against the paper's exact numbers and against counts made by hand."""

import pytest
from flax import nnx

from sasa_jax import create_model
from sasa_jax.analysis import count, format_table
from sasa_jax.models import create_retinanet
from sasa_jax.nn import LocalSelfAttention


def counts_of(name: str, image_size: int = 64, **overrides):
    return count(lambda: create_model(name, rngs=nnx.Rngs(0), **overrides), image_size)


TWO_BLOCKS = dict(blocks=(1, 1), attention_groups=(1, 2))  # as in ResNet-26, and quick to build


def attention_flops(window: int, features: int = 128, **options):
    """FLOPS of one layer for one pixel."""
    counts = count(
        lambda: LocalSelfAttention(features, window=window, rngs=nnx.Rngs(0), **options),
        image_size=(4, 8),
        channels=features,
    )
    assert counts.flops.plain % 32 == 0 and counts.flops.itemised % 32 == 0
    return counts.flops.plain // 32, counts.flops.itemised // 32


@pytest.mark.parametrize(
    ("name", "overrides", "parameters"),
    [
        ("resnet26", {}, 13_696_552),
        ("resnet38", {}, 19_626_792),
        ("resnet50", {}, 25_557_032),
        ("sa_resnet26_conv_stem", {}, 10_331_264),
        ("sa_resnet38_conv_stem", {}, 14_173_384),
        ("sa_resnet50_conv_stem", {}, 18_015_504),
        ("sa_resnet50", {"stem_relative": False}, 18_007_440),
    ],
)
def test_parameters_are_the_papers(name, overrides, parameters):
    assert counts_of(name, **overrides).parameters == parameters


def test_resnet50_flops():
    # torchvision publishes 4.09 GFLOPS for its ResNet-50, a multiply-add being one there.
    assert counts_of("resnet50", 224).flops.plain / 2e9 == pytest.approx(4.09, abs=0.005)


def test_a_19x19_attention_costs_what_a_3x3_convolution_costs():
    d, k = 128, 19
    convolution = count(
        lambda: nnx.Conv(d, d, (3, 3), use_bias=False, rngs=nnx.Rngs(0)), (4, 8), channels=d
    )
    assert convolution.flops.plain == 2 * 32 * 147_456
    plain, itemised = attention_flops(k, position="none")
    assert plain == 2 * 141_568 == 2 * (3 * d**2 + 2 * k**2 * d)
    assert itemised == plain + 7 * 8 * k**2


def test_relative_logits():
    d, k, softmax = 128, 19, 7 * 8 * 19**2
    without = attention_flops(k, position="none")
    plain, itemised = attention_flops(k)
    assert plain - without[0] == 2 * k**2 * d  # q . r for every slot
    assert itemised - without[1] == k**2 * d  # k + r for every slot
    plain, itemised = attention_flops(k, content=False)
    assert plain == 2 * (2 * d**2 + 2 * k**2 * d)
    assert itemised == 2 * (2 * d**2 + k**2 * d + 2_432) + softmax  # q . r by rows and columns


def test_grouped_projections_cost_less():
    dense, grouped = attention_flops(7), attention_flops(7, grouped_projections=True)
    assert dense[0] - grouped[0] == 2 * 3 * (128**2 - 128**2 // 8)


@pytest.mark.parametrize(
    ("overrides", "more_a_pixel"),
    [
        ({"stem_mixtures": 5}, 2 * (3 * 64 + 64)),  # one more projection, one more term to mix
        ({"stem_values": "plain"}, -2 * (3 * (3 * 64) + 4 * 64)),
        ({"stem_values": "conv"}, 2 * (4 * 4 * 3 * 64 - 4 * 3 * 64 - 4 * 64)),
        ({"stem_relative": False}, -2 * 16 * 64),
    ],
)
def test_attention_stem(overrides, more_a_pixel):
    base = counts_of("sa_resnet26", **TWO_BLOCKS).flops.plain
    more = counts_of("sa_resnet26", **TWO_BLOCKS, **overrides).flops.plain - base
    assert more == 64 * 64 * more_a_pixel


def test_attention_is_counted_before_its_pool():
    layers = {layer.path: layer for layer in counts_of("sa_resnet26", **TWO_BLOCKS).layers}
    assert layers["group1/block1/spatial"].output == (16, 16, 64)
    assert layers["group2/block1/spatial"].output == (16, 16, 128)
    assert layers["group2/block1/bn2"].output == (8, 8, 128)


def test_relu_bn_and_sums_are_itemised():
    layers = {layer.path: layer for layer in counts_of("resnet26", blocks=(1,)).layers}
    assert layers["stem"].flops == (0, 32 * 32 * 64)
    assert layers["stem/bn"].flops == (0, 4 * 32 * 32 * 64)
    # ReLUs after bn1, bn2 and the sum, and the sum.
    assert layers["group1/block1"].flops == (0, 16 * 16 * (64 + 64 + 256 + 256))


def test_flops_are_for_one_image_and_grow_with_its_size():
    small, large = (counts_of("sa_resnet26_conv_stem", size, **TWO_BLOCKS) for size in (64, 128))
    assert small.parameters == large.parameters
    classifier = 2 * 512 * 1000
    assert large.flops.plain - classifier == 4 * (small.flops.plain - classifier)


def test_a_layer_without_a_rule_is_an_error():
    with pytest.raises(TypeError, match=r"no counting rule for LayerNorm at \(model\)"):
        count(lambda: nnx.LayerNorm(3, rngs=nnx.Rngs(0)), 8)


def test_a_layer_that_is_not_called_is_an_error():
    class Idle(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.used = nnx.Linear(3, 3, rngs=rngs)
            self.idle = nnx.Linear(3, 3, rngs=rngs)

        def __call__(self, x):
            return self.used(x)

    with pytest.raises(TypeError, match="idle has parameters but is never called"):
        count(lambda: Idle(nnx.Rngs(0)), 8)


def test_table_is_in_the_networks_order_and_adds_up():
    counts = counts_of("sa_resnet26", **TWO_BLOCKS)
    lines = [line.split() for line in format_table(counts).splitlines()]
    parts = ["stem", "group1", "group2", "classifier"]
    assert [line[0] for line in lines] == ["layer", *parts, "total"]
    numbers = [int(line[2].replace(",", "")) for line in lines[1:-1]]
    assert sum(numbers) == counts.parameters
    assert lines[-1][1] == f"{counts.parameters:,}"
    assert lines[1][1] == "16x16x64"
    assert len(format_table(counts, every_layer=True).splitlines()) == len(counts.layers) + 2


PLACES = 4 * 20 + 2 * 10 + 1 * 5 + 1 * 3 + 1 * 2  # of P3 to P7 on 32x160 pixels


def detector_layers(**options):
    """The layers of a small detector by path."""
    backbone = dict(name="resnet26", blocks=(1, 1, 1, 1), width=0.125)
    options = dict(features=16, tower_depth=1, num_heads=2) | options
    counts = count(
        lambda: create_retinanet(backbone, num_classes=3, rngs=nnx.Rngs(0), **options), (32, 160)
    )
    return {layer.path: layer for layer in counts.layers}


def test_shared_heads_are_counted_at_every_level():
    layers = detector_layers()
    assert layers["class_head/layer1"].parameters == 9 * 16 * 16
    assert layers["class_head/layer1"].flops.plain == PLACES * 2 * 9 * 16 * 16
    assert layers["class_head/output"].flops.plain == PLACES * 2 * 9 * 16 * (6 * 3)
    assert layers["box_head"].flops == (0, PLACES * 16)  # the ReLU
    assert layers["fpn/p6"].flops.plain == 1 * 3 * 2 * 9 * 16 * 16
    # Sums at P4 and P3, and the ReLU of P6.
    assert layers["fpn"].flops == (0, (2 * 10 + 4 * 20 + 1 * 3) * 16)


def test_attention_in_the_detector():
    options = dict(fpn="attention", heads="attention", fpn_window=3, head_window=5)
    layers = detector_layers(**options)
    projections, window = 3 * 2 * 16 * 16, 3 * 2 * 25 * 16
    inside = sum(layers[f"class_head/layer1/{name}"].flops.plain for name in ("query", "value"))
    assert inside == PLACES * projections * 2 // 3
    assert layers["class_head/last"].flops.plain == PLACES * window
    # P6 is made at the resolution of P5, which is 1x5.
    assert layers["fpn/p6"].flops.plain == 5 * 3 * 2 * 9 * 16
    assert layers["fpn/p6"].output == (1, 5, 16)
    residual = detector_layers(**options, residual=True, query_key_norm="rms")
    at_inputs = PLACES - 2 + 5  # P6 and P7 add before their pools
    assert residual["fpn"].flops.itemised - layers["fpn"].flops.itemised == at_inputs * 16
    assert residual["box_head"].flops.itemised - layers["box_head"].flops.itemised == (
        2 * PLACES * 16
    )
    assert residual["box_head/last/query_norm"].flops == (0, 4 * PLACES * 16)
