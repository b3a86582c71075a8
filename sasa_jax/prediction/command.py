"""What `python main.py --mode=predict` does."""

import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from sasa_jax.prediction.files import find_images
from sasa_jax.prediction.loading import load
from sasa_jax.prediction.output import check_output, open_output
from sasa_jax.prediction.pictures import draw, picture_paths
from sasa_jax.prediction.progress import Progress


def predict_files(
    source: str | Path,
    images: Sequence[str],
    *,
    output: Path | None = None,
    pictures: Path | None = None,
    top_k: int = 5,
    min_score: float = 0.3,
    batch_size: int = 32,
) -> None:
    """Predicts files; writes results to `output` or the screen, everything else to stderr.

    Files that cannot be read are named, counted and left out.

    Args:
        source: what to `load`.
        images: files, folders or globs; see `find_images`.
        output: with a suffix of `output.py`.
        pictures: folder that gets a PNG for each image.
        top_k: classes of an image, for classification.
        min_score: of a box, for detection.
        batch_size: images at a time.

    Raises:
        ValueError: there is nothing to load or to predict, a value that is not allowed, or none of
            the files can be read.
    """
    if jax.process_count() > 1:
        raise ValueError("prediction runs in one process: leave --coordinator out")
    if not images:
        raise ValueError("--images is missing: give files, a folder or a quoted glob")
    if output is not None:
        check_output(output)
    files = find_images(images)
    targets = picture_paths(files, pictures) if pictures else {}
    predictor = load(source)
    classifies = predictor.task_name == "classification"
    options = {"top_k": top_k} if classifies else {"min_score": min_score}
    progress, unreadable = Progress(len(files)), 0
    # Where results appear on the screen, they are the progress.
    shown = output is not None or not sys.stdout.isatty()
    stream = predictor.stream(files, batch_size=batch_size, **options)
    begin = time.perf_counter()
    with contextlib.closing(stream), open_output(output, predictor.task_name) as write:
        for number, (file, result, error) in enumerate(stream, start=1):
            if error:
                unreadable += 1
                progress.say(f"skipped: {error}")
            else:
                write(file, result)
                if file in targets:
                    draw(file, result, targets[file], min_score=min_score)
            if shown:
                progress.show(number)
    if unreadable == len(files):
        raise ValueError(f"--images: none of {unreadable:,} files could be read")
    progress.say(_summary(len(files), unreadable, time.perf_counter() - begin, output, pictures))


def _summary(
    number: int, unreadable: int, seconds: float, output: Path | None, pictures: Path | None
) -> str:
    predicted = number - unreadable
    text = f"{predicted:,} image{'s' * (predicted != 1)} in {seconds:.1f} s"
    text += f" ({predicted / seconds:.1f} a second, compilation included)"
    if unreadable:
        text += f"; {unreadable:,} of {number:,} files could not be read"
    for path in filter(None, (output, pictures)):
        text += f"; {path} written"
    return text
