"""What `python main.py --mode=export` does."""

import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from sasa_jax.export.errors import CheckFailedError
from sasa_jax.export.exporting import FORMATS, export, usable
from sasa_jax.prediction import load
from sasa_jax.prediction.files import find_images


def export_model(
    source: Path, format: str | None, *, images: Sequence[str] = (), output: Path | None = None
) -> None:
    """Exports a trained network and prints what was written, and what its check found.

    Args:
        source: what to `load`.
        format: of FORMATS.
        images: files, folders or globs to check on; see `export`.
        output: the new folder; None is export/FORMAT in the source's.

    Raises:
        ValueError: it cannot be done; the message says what to do.
        SystemExit: 1, what was written computes something else.
    """
    if jax.process_count() > 1:
        raise ValueError("an export is made by one process: leave --coordinator out")
    if format is None:
        raise ValueError(f"--format is missing: one of {', '.join(FORMATS)}")
    usable(format)  # before the time that loading takes
    files = find_images(images) if images else ()
    try:
        print(export(load(source), format, output or source / "export" / format, images=files))
    except CheckFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
