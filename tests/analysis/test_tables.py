"""The paper's tables: cells reached, the check that holds them, and a config for every row."""

import dataclasses

import pytest

from configs import paper as paper_config
from configs import sa_resnet50
from sasa_jax.analysis import detection_table, tables
from sasa_jax.analysis.paper import DETECTION_ROWS, ROWS, find_row
from sasa_jax.models import model_options, retinanet_options


def test_the_papers_cells_are_reached(capsys):
    assert tables.main(["--check"]) == 0
    printed = capsys.readouterr().out
    assert "22 of 22 cells match" in printed
    assert "20 of 27 cells match" in printed
    assert "26 of 27 cells match" in printed
    assert all(name in printed for name in [*ROWS, *DETECTION_ROWS])


def test_the_one_miss_and_the_truncations():
    results = {name: tables.evaluate(row) for name, row in ROWS.items()}
    missed = [name for name, result in results.items() if not result.flops_match[1]]
    assert missed == ["t1.sa_resnet38"]
    assert results["t1.sa_resnet38"].itemised == pytest.approx(5.93, abs=0.005)
    worst = max(abs(result.plain - result.row.flops) for result in results.values())
    assert worst == pytest.approx(0.12, abs=0.005)
    # Rounded, these and only these would be missed.
    cut = {
        name: f"{result.parameters:.2f}"
        for name, result in results.items()
        if result.row.parameters and f"{result.parameters:.1f}" != f"{result.row.parameters:.1f}"
    }
    assert cut == {
        "t1.sa_resnet38_conv_stem": "14.17",
        "t1.sa_resnet38": "14.17",
        "t3.attn12_conv34": "25.09",
        "t6.content_off": "16.76",
    }


@pytest.mark.parametrize(
    ("name", "cell"), [("t3.attn1_conv234", "parameters"), ("t7.conv_values", "flops")]
)
def test_the_check_fails_on_a_wrong_number(name, cell, monkeypatch, capsys):
    wrong = dataclasses.replace(ROWS[name], **{cell: getattr(ROWS[name], cell) + 0.1})
    monkeypatch.setattr(tables, "ROWS", {**ROWS, name: wrong})
    assert tables.main(["--check"]) == 1
    printed = capsys.readouterr().out
    assert "check: FAILED" in printed
    assert "MISS" in next(line for line in printed.splitlines() if line.startswith(name))


def test_the_detection_table(capsys):
    results = {name: detection_table.evaluate(row) for name, row in DETECTION_ROWS.items()}
    assert all(result.parameters_match for result in results.values())
    itemised = {name: result.flops_errors[1] for name, result in results.items()}
    # Printed are full attention's FLOPS without what its stem costs in table 1.
    assert [name for name, row in DETECTION_ROWS.items() if row.inconsistent] == [
        "t2.conv_attn",
        "t2.attn_attn",
    ]
    assert itemised.pop("t2.attn_attn") == pytest.approx(0.029, abs=0.001)
    assert max(map(abs, itemised.values())) < 0.01
    text = detection_table.format_results(list(results.values()))
    assert "5 of 5 cells match" in text
    assert "FLOPS, plain     2 of 3 cells within 1 %" in text
    assert "FLOPS, itemised  3 of 3 cells within 1 %" in text
    assert "too, as the text says: 20.0 M parameters, 108.1 B plain" in text


@pytest.mark.parametrize(
    ("name", "cell", "more"),
    [("t2.attn_conv_stem", "parameters", 0.1), ("t2.conv_conv", "flops", 4)],
)
def test_the_check_covers_detection(name, cell, more, monkeypatch, capsys):
    wrong = dataclasses.replace(
        DETECTION_ROWS[name], **{cell: getattr(DETECTION_ROWS[name], cell) + more}
    )
    monkeypatch.setattr(tables, "DETECTION_ROWS", {**DETECTION_ROWS, name: wrong})
    assert tables.main(["--check"]) == 1
    assert "check: FAILED" in capsys.readouterr().out


def test_without_check_the_exit_code_is_zero(monkeypatch):
    wrong = dataclasses.replace(ROWS["t1.resnet26"], parameters=1.0)
    monkeypatch.setattr(tables, "ROWS", {"t1.resnet26": wrong})
    assert tables.main([]) == 0


@pytest.mark.parametrize("name", ROWS)
def test_every_row_has_a_config(name):
    row = ROWS[name]
    config = paper_config.get_config(name)
    options = {key: value for key, value in config.model.items() if value is not None}
    assert options.pop("name") == row.model
    assert options.pop("dtype") == "bfloat16"
    assert model_options(row.model) | options == model_options(row.model) | dict(row.overrides)
    base = sa_resnet50.get_config()
    if row.table in (3, 5):
        assert (config.data.train_split, config.data.eval_split) == ("train[4%:]", "train[:4%]")
        assert config.data.train_size + config.data.eval_size == base.data.train_size
        assert config.data.eval_size == 51_247
    else:
        assert config.data.to_dict() == base.data.to_dict()
    assert config.total_epochs == base.total_epochs


@pytest.mark.parametrize("name", DETECTION_ROWS)
def test_every_detection_row_has_a_config(name):
    row = DETECTION_ROWS[name]
    config = paper_config.get_config(name)
    assert (config.task, config.model.name) == ("detection", row.model)
    assert config.model.dtype == "bfloat16"
    given = {key: value for key, value in config.detector.items() if value is not None}
    assert retinanet_options() | given == retinanet_options() | dict(row.detector)


def test_an_unknown_row_lists_them_all():
    with pytest.raises(ValueError, match=r"did you mean 't3.conv1_attn234'") as error:
        paper_config.get_config("t3.conv1_attn23")
    assert all(name in str(error.value) for name in [*ROWS, *DETECTION_ROWS])
    with pytest.raises(ValueError, match=r"t1\.resnet26"):
        find_row("")
    assert find_row("t2.attn_attn").detector == {"heads": "attention"}
