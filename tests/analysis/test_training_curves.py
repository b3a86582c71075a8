"""The curves are the numbers of metrics.jsonl."""

import json

import pytest

from sasa_jax.analysis import curves_figure


def write(folder, *records):
    folder.joinpath("metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def test_every_record_is_a_point(tmp_path):
    train = [{"kind": "train", "step": step, "loss": 1 / step} for step in (10, 20, 30)]
    score = {"kind": "eval", "step": 30, "average/AP": 0.5, "raw/AP": 0.25, "average/AP50": 0.7}
    losses, scores = curves_figure(write(tmp_path, *train, score), metric="AP").axes
    (line,) = losses.lines
    assert line.get_xdata().tolist() == [10, 20, 30]
    assert line.get_ydata().tolist() == [1 / 10, 1 / 20, 1 / 30]
    assert [line.get_ydata().tolist() for line in scores.lines] == [[0.5], [0.25]]


def test_a_run_without_an_evaluation_has_its_loss(tmp_path):
    run = write(tmp_path, {"kind": "train", "step": 5, "loss": 2.0})
    assert len(curves_figure(run, metric="accuracy").axes[0].lines) == 1


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"metrics.jsonl does not exist"):
        curves_figure(tmp_path, metric="accuracy")
    run = write(tmp_path, {"kind": "eval", "step": 1, "average/accuracy": 0.5, "raw/accuracy": 0.5})
    with pytest.raises(ValueError, match=r"'AP'; it has accuracy$"):
        curves_figure(run, metric="AP")
