"""What the page holds, without a browser."""

import base64
import html
import json
import re
import subprocess
import sys
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest

from sasa_jax.explorer import build_page, explain, page
from sasa_jax.explorer.command import explain_file
from sasa_jax.explorer.network import attention_layers, position_logits, stages, stem_logits
from sasa_jax.explorer.packing import pack, pack_codes, quantise
from tests.explorer.conftest import NAMES, predictor
from tests.training.small_digits import small_digits

MAIN = Path(__file__).resolve().parents[2] / "main.py"


def inflate(text: str) -> np.ndarray:
    compressed = base64.b85decode(text.replace("/", "<"))
    return np.frombuffer(zlib.decompress(compressed), np.uint8)


def unpack(text: str, width: int) -> np.ndarray:
    return np.cumsum(inflate(text).reshape(-1, width), axis=-1, dtype=np.uint8)


def unpack_codes(text: str, shape: tuple[int, ...]) -> np.ndarray:
    """One window after the other, as explorer/packing.py tells."""
    codes = inflate(text).reshape(shape).transpose(0, 3, 4, 1, 2).astype(int)
    size = shape[1]
    for n, y, x in np.ndindex(codes.shape[:3]):
        window = codes[n, y, x]
        for a, b in np.ndindex(size, size):
            guess = 0
            if a and b:
                above = window[:a].sum(axis=0)
                own, their = window[a, :b].sum(), above[:b].sum()
                guess = min(own * above[b] // their if their else own, 255)
            elif a or b:
                guess = window[a, b - 1] if b else window[a - 1, 0]
            window[a, b] = (window[a, b] + guess) % 256
    return codes.transpose(0, 3, 4, 1, 2)


@pytest.mark.parametrize("sharpness", [0.0, 1.0, 8.0, 60.0])
def test_quantised_weights_are_off_by_a_256th_of_their_rows_largest(sharpness):
    rng = np.random.default_rng(0)
    weights = np.exp(sharpness * rng.normal(size=(9, 6, 4, 7, 7)))
    weights /= weights.sum(axis=(3, 4), keepdims=True)
    codes, tops = quantise(weights, 128)
    assert codes.shape == (4, 7, 7, 9, 6) and tops.shape == (4, 9, 6)
    assert codes.dtype == np.uint8 and tops.dtype == np.uint16 and codes.max() <= 128
    np.testing.assert_array_equal(unpack_codes(pack_codes(codes), codes.shape), codes)
    low, high = unpack(pack(tops), 6).reshape(2, *tops.shape).astype(np.int64)
    np.testing.assert_array_equal(low + 256 * high, tops)
    again = codes * (tops / (65535 * 128))[:, None, None]
    error = np.abs(again.transpose(3, 4, 0, 1, 2) - weights)
    largest = weights.max(axis=(3, 4), keepdims=True)
    # The row's largest is stored rounded up by less than a 65535th: half a code of that besides.
    assert (error <= (largest + 1 / 65535) / 256 + 1e-7).all()


@pytest.mark.parametrize("which", ["classifier", "detector"])
def test_layers_are_those_that_the_network_returns(which, request):
    explanation = request.getfixturevalue("seen" if which == "classifier" else "found")
    task = request.getfixturevalue(which).task
    *_, returned = jax.eval_shape(
        lambda v, x: task.predict(v, x, return_attention=True),
        task.shapes,
        jax.ShapeDtypeStruct((1, *explanation.image.shape), np.uint8),
    )
    layers = attention_layers(explanation.model)
    assert sorted(layers) == sorted(returned) == sorted(explanation.attention)
    flow = {stage.name: stage for stage in stages(explanation.model, task.image_size)}
    for name, weights in explanation.attention.items():
        source = flow[flow[name].source or name]
        assert (source.height, source.width) == weights.shape[:2], name
        assert source.pixels == 2 ** round(np.log2(task.image_size / weights.shape[0])), name
    for number, stage in enumerate(flow.values()):
        before = list(flow)[:number]
        assert stage.kind == "stem" or stage.source in before
        assert not stage.above or stage.above in before


def test_stem_weights_follow_from_pixels(seen, classifier):
    content, relative = stem_logits(seen.model.stem)
    mean, deviation = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    x = (seen.image - mean) / deviation
    blocks = x.reshape(8, 4, 8, 4, 3).swapaxes(1, 2).reshape(8, 8, 16, 3)
    logits = np.einsum("pqic,nce,pqje->pqnij", blocks, content, blocks)
    logits += np.einsum("pqic,nijc->pqnij", blocks, relative)
    weights = np.asarray(jax.nn.softmax(logits.astype(np.float32), axis=-1))
    np.testing.assert_allclose(weights, seen.attention["stem"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("which", ["seen", "found"])
def test_positions_explain_the_weights_of_padding(which, request):
    """Keys outside the image are 0, so position alone tells their weights, in every layer."""
    explanation = request.getfixturevalue(which)
    layers = attention_layers(explanation.model)
    assert set(explanation.queries) == {name for name in layers if not name.endswith("stem")}
    for name, query in explanation.queries.items():
        bases, coordinates = position_logits(layers[name], query)
        both = np.split(coordinates[:, :, 0, 0], 2, axis=1)  # of the corner, [N, R] each
        parts = [
            np.einsum("nkr,nr->nk", np.broadcast_to(basis, (len(x), *basis.shape[1:])), x)
            for basis, x in zip(bases, both, strict=True)
        ]
        rows, columns = ((part - part[:, :1])[:, : part.shape[1] // 2] for part in parts)
        weights = explanation.attention[name][0, 0][:, : rows.shape[1], : rows.shape[1]]
        ratios = weights / weights[:, :1, :1]
        expected = np.exp(rows[:, :, None] + columns[:, None, :])
        np.testing.assert_allclose(ratios, expected, rtol=1e-3, err_msg=name)


def test_page_holds_everything_and_asks_for_nothing(seen):
    text = build_page(seen)
    assert "<title>Attention in a &lt;b&gt;$1&amp;.png</title>" in text
    assert not re.search(r"https?://|@import|<link(?! rel=\"icon\" href=\"data:,\")| src=", text)
    about = json.loads(re.search(r'id="about">(.*?)</script>', text)[1])
    assert about["step"] == 1234 and about["side"] == 32
    assert [guess["name"] for guess in about["guesses"]] == [g.name for g in seen.guesses]
    assert 0.9 < sum(guess.score for guess in seen.guesses) < 1  # five classes of ten
    assert all(guess.name in NAMES for guess in seen.guesses)
    names = [layer["name"] for layer in about["layers"]]
    assert names == ["stem", "group1/block1", "group2/block1", "group2/block2"]
    assert [layer["pixels"] for layer in about["layers"]] == [4, 4, 4, 8]
    mixture = np.array(about["stem"]["mixture"])
    np.testing.assert_allclose(mixture, seen.model.stem.mixture_weights(), rtol=1e-5)
    rows, columns = about["tables"]["group1/block1"]
    layer = seen.model.group1["block1"].spatial
    np.testing.assert_allclose(rows[0], layer.row_embedding[...], rtol=1e-5)
    np.testing.assert_allclose(columns[0], layer.column_embedding[...], rtol=1e-5)

    parts = re.findall(r'data-name="(.*?)">(.*?)</script>', text)
    data = {html.unescape(name): text for name, text in parts}
    image = unpack(data["image"], 32).reshape(3, 32, 32).transpose(1, 2, 0)
    np.testing.assert_array_equal(image, seen.image)
    assert "stem codes" not in data
    for name in names[1:]:
        codes, _ = quantise(seen.attention[name], 128)
        again = unpack_codes(data[f"{name} codes"], codes.shape)
        np.testing.assert_array_equal(again, codes, err_msg=name)


def test_boxes_come_from_their_anchors(found):
    assert found.guesses and found.shown == (64, 48)
    shapes = {name: weights.shape for name, weights in found.attention.items()}
    for guess in found.guesses:
        top, left, bottom, right = guess.anchor
        stride = 2**guess.level
        centre = (guess.place[0] + 0.5) * stride, (guess.place[1] + 0.5) * stride
        assert ((top + bottom) / 2, (left + right) / 2) == pytest.approx(centre)
        height, width = shapes[f"class_head/last/p{guess.level}"][:2]
        assert guess.place[0] < height and guess.place[1] < width


def test_large_pages_have_fewer_levels(seen, monkeypatch):
    fine = build_page(seen)
    assert '"levels":128' in fine and "steps of 1/128" in fine
    data = {"image": pack(seen.image.transpose(2, 0, 1))} | page.packed_weights(seen, 128)
    size = sum(map(len, (data | page.packed_positions(seen, 15)[0]).values()))
    monkeypatch.setattr(page, "DATA_SIZE", size)
    between = build_page(seen)  # positions are given up first
    assert '"levels":128' in between and len(between) < len(fine)
    monkeypatch.setattr(page, "DATA_SIZE", size - 1)
    coarse = build_page(seen)
    assert '"levels":64' in coarse and "steps of 1/64" in coarse
    assert len(coarse) < len(between)


def test_notebooks_show_the_page(seen):
    frame = seen._repr_html_()
    shown = html.unescape(re.fullmatch(r'<iframe srcdoc="([^"]*)".*></iframe>', frame)[1])
    assert shown == build_page(seen)


def test_network_without_attention_is_refused(photo):
    options = dict(model__name="resnet26", model__attention_groups=(), model__stem="conv")
    with pytest.raises(ValueError, match="has no attention layer"):
        explain(predictor(small_digits(Path(), **options)), photo)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(image=None), "--image is missing"),
        (dict(image="x.png", output=Path("x.txt")), "must end in .html"),
        (dict(image="x.png", output=Path("none/x.html")), "there is no folder none"),
        (dict(image="x.png"), "there is no folder nowhere"),
    ],
)
def test_what_cannot_be_explained(options, message):
    with pytest.raises(ValueError, match=message):
        explain_file(Path("nowhere"), **options)


def test_image_that_cannot_be_read(classifier, tmp_path):
    for content, message in [(None, "No such file"), (b"no image", "cannot be read")]:
        if content:
            (tmp_path / "x.jpg").write_bytes(content)
        with pytest.raises(ValueError, match=f"x.jpg.*{message}"):
            explain(classifier, tmp_path / "x.jpg")


def test_command_refuses_with_one_line(tmp_path):
    command = [sys.executable, str(MAIN), "--mode=explain", "--workdir=nowhere", "--image=x.png"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: there is no folder nowhere\n"
    assert not list(tmp_path.iterdir())
