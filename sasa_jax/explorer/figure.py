"""Attention figures of one image from the command line, for papers and slides.

    python -m sasa_jax.explorer.figure --workdir runs/digits --image photo.jpg \\
        --pixels 12,20 25,8 --layers group1/block1 group2/block2 --heads 1 4 --output figure.svg

Pixels are ROW,COLUMN of the image as the network sees it; heads are counted from 1, as in the
figure. What is left out is chosen: three pixels at edges, at most four layers, all heads. The
output is PNG, SVG or PDF by its ending.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sasa_jax.analysis import save_attention_figure
from sasa_jax.explorer.explanation import explain
from sasa_jax.prediction import load

FORMATS = (".png", ".svg", ".pdf")


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the figure; returns the exit code, 2 with one line on stderr for a refusal."""
    parser = argparse.ArgumentParser(
        prog="python -m sasa_jax.explorer.figure",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", type=Path, required=True, help="a run's folder")
    parser.add_argument("--image", required=True, help="a photo")
    parser.add_argument("--pixels", type=_pixel, nargs="+", help="ROW,COLUMN ...")
    parser.add_argument("--layers", nargs="+", help="names, e.g. group1/block2")
    parser.add_argument("--heads", type=int, nargs="+", help="numbers from 1")
    parser.add_argument("--title", help="over the image; else the prediction")
    parser.add_argument("--output", type=Path, default=Path("attention.svg"))
    args = parser.parse_args(arguments)
    try:
        if args.output.suffix not in FORMATS:
            raise ValueError(f"--output {args.output} must end in {', '.join(FORMATS)}")
        explanation = explain(load(args.workdir), args.image)
        best = explanation.guesses[0] if explanation.guesses else None
        save_attention_figure(
            args.output,
            explanation.image,
            explanation.attention,
            queries=args.pixels,
            layers=args.layers,
            heads=args.heads,
            title=args.title or (f"{best.name}, {best.score:.2f}" if best else "nothing found"),
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(args.output)
    return 0


def _pixel(text: str) -> tuple[int, int]:
    row, column = text.split(",")
    return int(row), int(column)


if __name__ == "__main__":
    sys.exit(main())
