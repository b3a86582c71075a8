"""What `python main.py --mode=explain` does."""

from pathlib import Path

import jax

from sasa_jax.explorer.explanation import explain
from sasa_jax.explorer.page import write_page
from sasa_jax.prediction import load


def explain_file(source: str | Path, image: str | None, *, output: Path | None = None) -> None:
    """Writes the page of one image and says what is in it.

    Args:
        source: what to `load`.
        image: its file.
        output: of the page; None is explain.html here.

    Raises:
        ValueError: nothing to load or to explain, or the image cannot be read.
        OSError: the page cannot be written.
    """
    if jax.process_count() > 1:
        raise ValueError("explain runs in one process: leave --coordinator out")
    if not image:
        raise ValueError("--image is missing: give a photo, --image=photo.jpg")
    output = output or Path("explain.html")
    if output.suffix != ".html":
        raise ValueError(f"--output {output} must end in .html: it is a page for a browser")
    if not output.parent.is_dir():
        raise ValueError(f"--output {output}: there is no folder {output.parent}")
    explanation = explain(load(source), image)
    size = write_page(output, explanation)
    for guess in explanation.guesses[:5]:
        print(f"{guess.name:20} {guess.score:.4f}")
    print(
        f"{output}: {len(explanation.attention)} layers, {size / 1e6:.1f} MB; open it in a browser"
    )
