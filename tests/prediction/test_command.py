"""`--mode=predict`: which files, in which form, and what is said of those that cannot be read."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sasa_jax.prediction import Classified, Detected, progress
from sasa_jax.prediction.command import predict_files
from sasa_jax.prediction.files import find_images
from sasa_jax.prediction.output import open_output
from sasa_jax.prediction.pictures import draw, picture_paths

ROOT = Path(__file__).resolve().parents[2]
CLASSIFIED = Classified(("cat, tabby", "dog"), (3, 1), (0.98765432, 1e-7))
DETECTED = Detected(("cat",), (3,), (0.5,), ((1.0, 2.346, 30.5, 40.0),))


@pytest.fixture
def tree(tmp_path):
    for name in ("a.jpg", "b.PNG", "notes.txt", "deep/c.webp", "deep/er/d.png", "[1].png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        ([""], ["[1].png", "a.jpg", "b.PNG", "deep/c.webp", "deep/er/d.png"]),
        (["*.jpg"], ["a.jpg"]),
        (["*"], ["[1].png", "a.jpg", "b.PNG", "notes.txt"]),
        (["**/*.png"], ["[1].png", "deep/er/d.png"]),
        (["notes.txt", "deep", "deep/c.webp"], ["notes.txt", "deep/c.webp", "deep/er/d.png"]),
        (["[1].png"], ["[1].png"]),
    ],
)
def test_files_folders_and_globs(tree, sources, names):
    found = find_images([str(tree / source) for source in sources])
    assert [path.relative_to(tree).as_posix() for path in found] == names


def test_a_source_without_files_is_named(tree):
    (tree / "empty").mkdir()
    for source, message in (
        ("empty", "empty holds no image (.bmp, .jpeg, .jpg"),
        ("*.gif", "--images: no file matches"),
        ("a.jpgg", "(did you mean 'a.jpg'?)"),
    ):
        with pytest.raises(ValueError) as error:
            find_images([str(tree / "a.jpg"), str(tree / source)])
        assert message in str(error.value)


def written(path, task_name, result):
    with open_output(path, task_name) as write:
        write(Path("x.png"), result)
        assert not path.exists()
        write(Path("ü.png"), result)
    assert list(path.parent.iterdir()) == [path]
    return path.read_text(encoding="utf-8")


def test_csv_has_a_line_for_each_class_or_box(tmp_path):
    rows = list(csv.reader(io.StringIO(written(tmp_path / "a.csv", "classification", CLASSIFIED))))
    assert rows[0] == ["file", "class", "index", "score"]
    assert rows[1] == ["x.png", "cat, tabby", "3", "0.987654"]
    assert rows[2] == ["x.png", "dog", "1", "1e-07"] and rows[3][0] == "ü.png"
    os.remove(tmp_path / "a.csv")
    rows = written(tmp_path / "b.CSV", "detection", DETECTED).splitlines()
    assert rows[0] == "file,class,index,score,top,left,bottom,right"
    assert rows[1] == "x.png,cat,3,0.5,1.0,2.35,30.5,40.0"


def test_json_is_a_list_and_json_lines_a_line_for_each_image(tmp_path):
    whole = json.loads(written(tmp_path / "a.json", "detection", DETECTED))
    os.remove(tmp_path / "a.json")
    lines = written(tmp_path / "a.jsonl", "detection", DETECTED).splitlines()
    assert whole == [json.loads(line) for line in lines]
    box = {"class": "cat", "index": 3, "score": 0.5, "top": 1.0, "bottom": 30.5, "right": 40.0}
    (found,) = whole[0]["predictions"]
    assert found.pop("left") == pytest.approx(2.346, abs=0.006) and found == box
    assert [entry["file"] for entry in whole] == ["x.png", "ü.png"]
    with open_output(tmp_path / "none.json", "detection"):
        pass
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_what_was_predicted_before_a_failure_stays_beside(tmp_path):
    with pytest.raises(KeyboardInterrupt), open_output(tmp_path / "a.jsonl", "detection") as write:
        write(Path("x.png"), DETECTED)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [tmp_path / "a.jsonl.partial"]
    assert json.loads((tmp_path / "a.jsonl.partial").read_text())["file"] == "x.png"


def test_the_screen_has_a_table(capsys):
    with open_output(None, "classification") as write:
        write(Path("x.png"), CLASSIFIED)
        write(Path("y.png"), DETECTED)
        write(Path("z.png"), Detected((), (), (), ()))
    assert capsys.readouterr().out.splitlines() == [
        "x.png  cat, tabby 0.988  dog 0.000",
        "y.png  cat 0.500  top 1.0  left 2.3  bottom 30.5  right 40.0",
        "z.png  nothing found",
    ]


def test_a_reader_that_has_enough_ends_the_command_quietly(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as screen, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", screen)
        with pytest.raises(SystemExit) as leave, open_output(None, "detection") as write:
            write(Path("x.png"), DETECTED)
        assert leave.value.code == 0


@pytest.mark.parametrize("result", [CLASSIFIED, DETECTED, Detected((), (), (), ())])
def test_a_picture_of_a_result(tmp_path, digits_run, result):
    image = tmp_path / "a.png"
    image.write_bytes(digits_run.split[0]["image"])
    draw(image, result, tmp_path / "new" / "b.png", min_score=0.1)
    assert (tmp_path / "new" / "b.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_are_laid_out_as_the_images(tmp_path):
    files = [Path("p/a/1.jpg"), Path("p/b/1.jpg"), Path("p/b/1.png")]
    targets = picture_paths(files, tmp_path)
    names = [targets[file].relative_to(tmp_path).as_posix() for file in files]
    assert names == ["a/1.jpg.png", "b/1.jpg.png", "b/1.png.png"]
    assert picture_paths([Path("p/1.jpg")], tmp_path) == {Path("p/1.jpg"): tmp_path / "1.jpg.png"}


def test_the_command_writes_reports_and_draws(digits_run, digits_model, photos, tmp_path, capsys):
    target, pictures = tmp_path / "new" / "out.jsonl", tmp_path / "pictures"
    predict_files(
        digits_run.workdir, [str(photos)], output=target, pictures=pictures, top_k=2, batch_size=4
    )
    screen = capsys.readouterr()
    assert screen.out == ""
    skipped, summary = screen.err.splitlines()
    assert skipped.startswith(f"skipped: {photos / '2_broken.jpg'} cannot be read: ")
    assert summary.startswith("5 images in ") and "1 of 6 files could not be read" in summary
    assert f"{target} written; {pictures} written" in summary
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    names = [f"{place}.png" for place in range(5)]
    assert [line["file"] for line in lines] == [str(photos / name) for name in names]
    assert {path.name for path in pictures.iterdir()} == {f"{name}.png" for name in names}
    expected = digits_model([photos / name for name in names], top_k=2, batch_size=4)
    for line, result in zip(lines, expected, strict=True):
        assert [row["class"] for row in line["predictions"]] == list(result.names)
        scores = [row["score"] for row in line["predictions"]]
        np.testing.assert_allclose(scores, result.scores, rtol=1e-4, atol=1e-6)


def test_the_command_finds_boxes(scenes_run, tmp_path, capsys):
    (tmp_path / "scene.png").write_bytes(scenes_run.split[0]["image"])
    predict_files(scenes_run.workdir, [str(tmp_path)], output=tmp_path / "o.csv", min_score=0.4)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "o.csv").read_text())))
    assert rows and all(float(row["score"]) >= 0.4 for row in rows)
    assert all(float(row["top"]) <= float(row["bottom"]) <= 97 for row in rows)


def test_the_command_refuses_before_it_loads(digits_run, photos, tmp_path):
    nowhere = tmp_path / "nowhere"
    for images, options, message in (
        ([], {}, "--images is missing: give files, a folder or a quoted glob"),
        ([str(photos)], {"output": Path("a.cvs")}, "one of .csv, .json, .jsonl (did you mean"),
        ([str(nowhere)], {}, "no file matches"),
        ([str(photos)], {}, f"there is no folder {nowhere}"),
    ):
        with pytest.raises(ValueError) as error:
            predict_files(nowhere, images, **options)
        assert message in str(error.value)
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        predict_files(digits_run.workdir, [str(photos)], top_k=0)
    with pytest.raises(ValueError, match="none of 1 files could be read"):
        predict_files(digits_run.workdir, [str(photos / "2_broken.jpg")])


class Screen(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.isatty = lambda: terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_a_long_run_tells_speed_and_time_left(monkeypatch, terminal):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    screen = Screen(terminal)
    meter = progress.Progress(10_000, screen)
    meter.show(1)
    for done in range(2, 102):
        now[0] += 1.0
        meter.show(done)
    meter.say("done")
    lines = screen.getvalue().replace("\r\x1b[K", "\n").split("\n")
    assert lines[-2:] == ["done", ""]
    told = [line for line in lines if "left" in line]
    assert len(told) == (99 if terminal else 3)
    assert told[-1] == (
        f"[{' ' * 20}]  101 of 10,000 images  1.0 images/s  left 2:44:59"
        if terminal
        else "91 of 10,000 images  1.0 images/s  left 2:45:09"
    )


def test_a_short_run_shows_no_progress():
    screen = Screen(True)
    meter = progress.Progress(2, screen)
    meter.show(1)
    meter.show(2)
    assert screen.getvalue() == ""


def command_line(*arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
        timeout=120,
    )


def test_the_command_line_predicts(digits_run, photos):
    files = [f"--images={photos / '[01].png'}", f"--images={photos / '4.png'}"]
    done = command_line("--mode=predict", f"--workdir={digits_run.workdir}", "--top_k=1", *files)
    assert done.returncode == 0, done.stderr
    rows = [line.split("  ") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == [str(photos / f"{place}.png") for place in (0, 1, 4)]
    assert done.stderr.startswith("3 images in ")


def test_a_wrong_mode_suggests_the_nearest():
    done = command_line("--mode=prdict")
    assert done.returncode == 2, done
    assert "did you mean 'predict'?" in done.stderr and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and done.stdout == ""
