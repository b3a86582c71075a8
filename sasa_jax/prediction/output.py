"""Predictions as CSV, JSON, JSON lines, or a table on the screen; all are written as they come.

CSV has a line for each class of an image, or each box, best first, under the header

    file,class,index,score                          classification
    file,class,index,score,top,left,bottom,right    detection

with the number of the class's logit, a score from 0 to 1, and boxes in pixels of the image. An
image in which nothing was found has no line. JSON is a list, and JSON lines has on each line, of

    {"file": "a.png", "predictions": [{"class": "cat", "index": 3, "score": 0.9873}, ...]}

with the same names. Scores have six digits, boxes two decimals. Files that cannot be read are in
none of them.
"""

import contextlib
import csv
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from sasa_jax.checks import nearest
from sasa_jax.prediction.classification import Classified
from sasa_jax.prediction.detection import Detected

Result = Classified | Detected
Write = Callable[[Path, Result], None]

_SCORE = ("class", "index", "score")
_SIDES = ("top", "left", "bottom", "right")
COLUMNS = {"classification": _SCORE, "detection": (*_SCORE, *_SIDES)}


@contextlib.contextmanager
def open_output(path: Path | None, task_name: str) -> Iterator[Write]:
    """Gives the function that writes the result of a file, to `path` or to the screen.

    The file has its name when it is complete, and ".partial" after it until then.
    """
    if path is None:
        with _while_read():
            yield _print_row
        return
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        # A name that is not UTF-8 is written as the bytes that it is.
        open(partial, "w", encoding="utf-8", errors="surrogateescape", newline="") as stream,
        _FORMATS[path.suffix.lower()](stream, COLUMNS[task_name]) as write,
    ):
        yield write
    partial.replace(path)


def check_output(path: Path) -> None:
    """Raises ValueError if the suffix names no format."""
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(
            f"--output={path}: the suffix says the format, one of {', '.join(_FORMATS)}"
            f"{nearest(path.suffix, _FORMATS)}"
        )


def predictions(result: Result) -> list[dict[str, Any]]:
    """A result as plain rows, best first."""
    rows = [
        {"class": name, "index": index, "score": float(f"{score:.6g}")}
        for name, index, score in zip(result.names, result.indices, result.scores, strict=True)
    ]
    if isinstance(result, Detected):
        for row, box in zip(rows, result.boxes, strict=True):
            row |= dict(zip(_SIDES, (round(side, 2) for side in box), strict=True))
    return rows


@contextlib.contextmanager
def _csv(stream: TextIO, columns: tuple[str, ...]) -> Iterator[Write]:
    writer = csv.DictWriter(stream, ("file", *columns), lineterminator="\n")
    writer.writeheader()

    def write(file: Path, result: Result) -> None:
        writer.writerows({"file": str(file), **row} for row in predictions(result))

    yield write


@contextlib.contextmanager
def _json(stream: TextIO, columns: tuple[str, ...]) -> Iterator[Write]:
    separator = "[\n"

    def write(file: Path, result: Result) -> None:
        nonlocal separator
        stream.write(separator + _line(file, result))
        separator = ",\n"

    yield write
    stream.write("\n]\n" if separator == ",\n" else "[]\n")


@contextlib.contextmanager
def _json_lines(stream: TextIO, columns: tuple[str, ...]) -> Iterator[Write]:
    yield lambda file, result: print(_line(file, result), file=stream)


_FORMATS = {".csv": _csv, ".json": _json, ".jsonl": _json_lines}


def _line(file: Path, result: Result) -> str:
    return json.dumps({"file": str(file), "predictions": predictions(result)})


@contextlib.contextmanager
def _while_read() -> Iterator[None]:
    """Leaves quietly when the reader of the screen does, as `| head` when it has its lines."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes what is left as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _print_row(file: Path, result: Result) -> None:
    """`photos/a.png  cat 0.987  dog 0.010`, or a line for each box."""
    start = os.fsencode(file).decode(errors="replace")
    scored = [
        f"{name} {score:.3f}" for name, score in zip(result.names, result.scores, strict=True)
    ]
    if isinstance(result, Classified):
        lines = ["  ".join(scored)]
    else:
        lines = [
            "  ".join([what, *(f"{side} {x:.1f}" for side, x in zip(_SIDES, box, strict=True))])
            for what, box in zip(scored, result.boxes, strict=True)
        ]
    sys.stdout.writelines(f"{start}  {line}\n" for line in lines or ["nothing found"])
