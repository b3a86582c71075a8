"""Runs the notebooks of this folder from top to bottom and stores what they put out.

    python -m colabs.execute                                  # all; or their names
    python -m colabs.execute --repository=ME/REPO --links     # a fork: its links, nothing is run

A cell that fails ends it with the notebook's name and the traceback; that notebook stays as it was.
"""

import argparse
import base64
import copy
import io
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from PIL import Image

FOLDER = Path(__file__).parent
NOTEBOOKS = tuple(sorted(FOLDER.glob("*.ipynb")))
PARAMETERS = "parameters"  # tag of the cell that users change
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_REPOSITORY = re.compile(r"(github\.com/|/github/)[\w.-]+/[\w.-]+(?=/blob/|\")")


class NotebookError(RuntimeError):
    """A cell failed; says which notebook's, and has its traceback."""


def read(path: Path) -> NotebookNode:
    """A notebook of this folder."""
    return nbformat.read(path, as_version=4)


def write(path: Path, notebook: NotebookNode) -> None:
    """Stores a notebook, without what differs from run to run for no reason, and small."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id = f"cell-{number:02}"
        cell.metadata = {"tags": cell.metadata.tags} if "tags" in cell.metadata else {}
        for output in cell.get("outputs", ()):
            if picture := output.get("data", {}).get("image/png"):
                output.data["image/png"] = _small(picture)
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


def _small(picture: str) -> str:
    """A PNG in base64 with at most 256 colours: a third of the bytes, and nothing is missed."""
    image = Image.open(io.BytesIO(base64.b64decode(picture)))
    if image.mode == "P":
        return picture
    content = io.BytesIO()
    image.convert("RGB").quantize(256).save(content, "png", optimize=True)
    return base64.b64encode(content.getvalue()).decode()


def execute(
    name: str,
    notebook: NotebookNode,
    folder: Path,
    *,
    parameters: str = "",
    environment: Mapping[str, str] | None = None,
) -> NotebookNode:
    """A copy of the notebook with the outputs of a fresh kernel.

    Args:
        name: for messages.
        notebook: as read.
        folder: where it runs; gets what it writes.
        parameters: code to run after the cell tagged "parameters", e.g. for a shorter training.
        environment: variables of the kernel besides those of this process.

    Raises:
        NotebookError: a cell failed.
    """
    notebook = copy.deepcopy(notebook)
    places = [i for i, c in enumerate(notebook.cells) if PARAMETERS in c.metadata.get("tags", [])]
    extra = [nbformat.v4.new_code_cell(parameters)] if parameters else []
    for cell in extra:
        notebook.cells.insert(places[0] + 1, cell)
    paths = str(FOLDER.parent), os.environ.get("PYTHONPATH", "")
    with tempfile.TemporaryDirectory() as home:
        # This clone, no settings of the person who runs it, and every warning shown.
        kernel = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "IPYTHONDIR": home,
            "PYTHONWARNINGS": "default",
            **(environment or {}),
        }
        client = NotebookClient(
            notebook,
            timeout=None,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(folder)}},
        )
        client.create_kernel_manager()
        # Nobody else on the machine can connect.
        client.km.transport, client.km.ip = "ipc", str(Path(home, "kernel"))
        try:
            client.execute(env=kernel)
        except CellExecutionError as error:
            raise NotebookError(f"{name}: {_ESCAPES.sub('', str(error))}") from None
    notebook.cells = [cell for cell in notebook.cells if cell not in extra]
    return notebook


def link(notebook: NotebookNode, repository: str) -> None:
    """Lets the notebook's links and its clone be of another OWNER/NAME on GitHub."""
    for cell in notebook.cells[:2]:
        cell.source = _REPOSITORY.sub(rf"\g<1>{repository}", cell.source)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    names = [path.stem for path in NOTEBOOKS]
    parser = argparse.ArgumentParser(
        prog="python -m colabs.execute",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; or all")
    parser.add_argument("--repository", metavar="OWNER/NAME", help="on GitHub, for the links")
    parser.add_argument("--links", action="store_true", help="change the links, run nothing")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(names):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    for path in NOTEBOOKS:
        if path.stem not in (options.names or names):
            continue
        notebook, begin = read(path), time.perf_counter()
        if options.repository:
            link(notebook, options.repository)
        if not options.links:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    notebook = execute(path.stem, notebook, Path(folder))
                except NotebookError as error:
                    print(error, file=sys.stderr)
                    return 1
        write(path, notebook)
        size = path.stat().st_size / 1e3
        print(f"{path.name}: {time.perf_counter() - begin:.0f} s, {size:.0f} kB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
