"""What `python main.py --mode=export` does."""

import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from sasa_jax.export.card import write_card
from sasa_jax.export.errors import CheckFailedError
from sasa_jax.export.exporting import FORMATS, export, usable
from sasa_jax.export.serving import Network
from sasa_jax.hub import PREFIX, check_upload, on_hub, upload
from sasa_jax.prediction import load
from sasa_jax.prediction.files import find_images


def export_model(
    source: str | Path,
    format: str | None,
    *,
    images: Sequence[str] = (),
    output: Path | None = None,
    push: str | None = None,
) -> None:
    """Exports a trained network and prints what was written, and what its check found.

    Args:
        source: what to `load`.
        format: of FORMATS.
        images: files, folders or globs to check on; see `export`.
        output: the new folder; None is export/FORMAT in the source's.
        push: OWNER/NAME on the Hugging Face Hub, to which the export then goes with a model card.

    Raises:
        ValueError: it cannot be done; the message says what to do.
        SystemExit: 1, what was written computes something else.
    """
    if jax.process_count() > 1:
        raise ValueError("an export is made by one process: leave --coordinator out")
    if format is None:
        raise ValueError(f"--format is missing: one of {', '.join(FORMATS)}")
    usable(format)  # before the time that loading takes
    if on_hub(source) and output is None:
        raise ValueError(f"--output is missing: a folder for what is made of {source}")
    if push:
        if format != "safetensors":
            raise ValueError(
                f"--push needs --format=safetensors, which can be loaded; not {format}"
            )
        check_upload(push)
    files = find_images(images) if images else ()
    output = output or Path(source) / "export" / format
    predictor = load(source)
    try:
        print(export(predictor, format, output, images=files))
    except CheckFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    if push:
        write_card(output, Network.of(predictor), Path(source), push)
        print(f"{upload(output, push)}: pushed; sasa_jax.load('{PREFIX}{push}')")
