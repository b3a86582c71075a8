"""The two commands from end to end, with a network at hand instead of a run's folder."""

from pathlib import Path

import cv2
import pytest

from sasa_jax.explorer import command, figure


@pytest.fixture(autouse=True)
def at_hand(classifier, monkeypatch):
    for module in (command, figure):
        monkeypatch.setattr(module, "load", lambda source: classifier)


def test_page(photo, seen_page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command.explain_file(Path("run"), str(photo))
    assert (tmp_path / "explain.html").read_bytes() == seen_page.read_bytes()
    assert "explain.html: 4 layers" in capsys.readouterr().out


def test_figures(photo, tmp_path, capsys):
    wanted = ["--workdir", "run", "--image", str(photo), "--pixels", "3,4", "20,30"]
    wanted += ["--layers", "group1/block1", "stem", "--heads", "2", "--output"]
    assert figure.main([*wanted, str(tmp_path / "x.svg")]) == 0
    drawing = (tmp_path / "x.svg").read_text()
    assert ">head 2<" in drawing and ">head 1<" not in drawing and ">stem<" in drawing
    assert figure.main([*wanted, str(tmp_path / "x.png")]) == 0
    assert min(cv2.imread(str(tmp_path / "x.png")).shape[:2]) > 500
    capsys.readouterr()
    for change, message in [
        (["--output", "x.gif"], "must end in .png, .svg, .pdf"),
        (["--pixels", "40,1"], "query (40, 1) is outside"),
        (["--heads", "5"], "has the 4 heads 1 to 4 and no 5"),
        (["--layers", "group1/block7"], "did you mean 'group1/block1'"),
    ]:
        assert figure.main([*wanted, str(tmp_path / "y.png"), *change]) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1
