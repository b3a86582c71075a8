"""Which image files are meant."""

import glob
from collections.abc import Iterable
from pathlib import Path

from sasa_jax.checks import nearest
from sasa_jax.data.image_folder import SUFFIXES


def find_images(sources: Iterable[str]) -> list[Path]:
    """The files that are named, each once, in the order of the sources and sorted within one.

    Args:
        sources: files, of any name; folders, of which all images are taken, at any depth, by their
            suffix; or globs, in which ** stands for any number of folders.

    Raises:
        ValueError: a source without any file.
    """
    found: dict[Path, None] = {}
    for source in sources:
        path = Path(source).expanduser()
        if path.is_dir():
            inside = (p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
            files = sorted(p for p in inside if not p.is_dir())
            reason = f"the folder {source} holds no image ({', '.join(SUFFIXES)})"
        elif path.exists():
            files, reason = [path], ""
        else:
            matches = map(Path, glob.glob(str(path), recursive=True))
            files = sorted(p for p in matches if not p.is_dir())
            beside = [p.name for p in path.parent.glob("*")]
            reason = f"no file matches {source}{nearest(path.name, beside)}"
        if not files:
            raise ValueError(f"--images: {reason}")
        found |= dict.fromkeys(files)
    return list(found)
