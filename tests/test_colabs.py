"""The notebooks run from top to bottom, show what they did, and leave Colab's JAX alone."""

import re
import sys

import nbformat
import pytest

from colabs import execute, install

REPOSITORY = re.compile(r"github\.com/([\w.-]+/[\w.-]+)\"|/github/([\w.-]+/[\w.-]+)/blob/")
# A network and a training that are small enough to be run on every change.
SMALL_NETWORK = {
    "model.blocks": (1,),
    "model.attention_groups": (1,),
    "model.width": 0.25,
    "model.window": 3,
    "total_steps": 4,
    "eval_every": 2,
    "log_every": 2,
}
SMALL_DETECTOR = {
    "model.blocks": (1, 1, 1),
    "model.attention_groups": (3,),
    "model.width": 0.125,
    "model.num_heads": 2,
    "detector.features": 16,
    "detector.tower_depth": 1,
    "detector.fpn": "conv",  # attention there takes a minute to compile
    "detector.heads": "conv",
    "batch_size": 8,
    "eval_batch_size": 20,
    "total_steps": 4,
    "eval_every": 4,
    "log_every": 2,
    "data.eval_split": "test[:20]",
    # So short a training finds nothing that it is sure of.
    "decoding.score_threshold": 0.0,
    "decoding.max_detections": 20,
}
QUICK = {
    "detection": f"OVERRIDES = {SMALL_DETECTOR}",
    "paper_in_pictures": "TABLES = (7,)",
    "quickstart": f"OVERRIDES = {SMALL_NETWORK | {'data.eval_split': 'test[:60]'}}",
    "your_own_data": f"OVERRIDES = {SMALL_NETWORK}",
}
FAST = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # to compile takes longer than to run, here
notebooks = pytest.mark.parametrize("path", execute.NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in execute.read(path).cells if cell.cell_type == "code"]


def test_there_are_four():
    assert [path.stem for path in execute.NOTEBOOKS] == list(QUICK)


@notebooks
def test_it_begins_with_its_link_the_setup_and_its_parameters(path):
    title, setup, parameters = execute.read(path).cells[:3]
    assert "https://colab.research.google.com/assets/colab-badge.svg" in title.source
    assert f"/blob/main/colabs/{path.name})" in title.source
    # The same everywhere, and so is the repository that link and clone are of.
    assert setup.source == execute.read(execute.NOTEBOOKS[0]).cells[1].source
    found = [link or clone for link, clone in REPOSITORY.findall(title.source + setup.source)]
    assert len(found) == 2 and len(set(found)) == 1
    assert parameters.metadata.tags == [execute.PARAMETERS]


@notebooks
def test_it_was_run_from_top_to_bottom_and_shows_it(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    text = "".join(output.get("text", "") for output in outputs)
    assert not re.search(r"/(tmp|root|home)/|Traceback|Warning", text)
    assert path.stat().st_size < 650_000


@notebooks
def test_it_is_stored_in_its_normal_form(path, tmp_path):
    execute.write(tmp_path / path.name, execute.read(path))
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@notebooks
def test_every_figure_is_followed_or_preceded_by_words(path):
    cells = execute.read(path).cells
    for number, cell in enumerate(cells):
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", ())):
            around = cells[number - 1], cells[number + 1]
            assert any(neighbour.cell_type == "markdown" for neighbour in around)


# Two minutes of two cores; Colab has a newer Python than the oldest that is supported.
@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="on 3.12 and up; here `make colabs` runs them"
)
@notebooks
def test_it_runs(path, tmp_path):
    executed = execute.execute(
        path.stem, execute.read(path), tmp_path, parameters=QUICK[path.stem], environment=FAST
    )
    outputs = [output for cell in executed.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    assert len(executed.cells) == len(execute.read(path).cells)


@pytest.mark.slow
@notebooks
def test_it_runs_as_it_is(path, tmp_path):
    execute.execute(path.stem, execute.read(path), tmp_path)


def test_a_cell_that_fails_is_told_with_its_notebook(tmp_path):
    cells = [nbformat.v4.new_code_cell(source) for source in ("x = 1", "1 / x", "x = 2")]
    cells[0].metadata["tags"] = [execute.PARAMETERS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    with pytest.raises(execute.NotebookError, match=r"(?s)^mine: .*1 / x.*ZeroDivisionError"):
        execute.execute("mine", notebook, tmp_path, parameters="x = 0")
    assert all(not cell.outputs for cell in notebook.cells)


def test_a_fork_changes_link_and_clone_and_nothing_else():
    notebook = execute.read(execute.NOTEBOOKS[0])
    before = [cell.source for cell in notebook.cells]
    execute.link(notebook, "me/my.fork")
    after = [cell.source for cell in notebook.cells]
    assert REPOSITORY.findall(after[0] + after[1]) == [("", "me/my.fork"), ("me/my.fork", "")]
    execute.link(notebook, REPOSITORY.search(before[0])[2])
    assert [cell.source for cell in notebook.cells] == before and after[2:] == before[2:]


# ---- The first cell, in Colab. ----

LINES = (install.ROOT / "requirements.txt").read_text().splitlines()
PINNED = [line.split("==")[0] for line in LINES if "==" in line]
NEW = dict.fromkeys(PINNED, "1.0") | {"jax": "99.0", "flax": "99.0", "protobuf": "7.0"}


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, []),
        ({"clu": None}, ["clu==", "numpy==1.0"]),
        ({"jax": "0.1"}, ["jax>=", "numpy==1.0"]),
        ({"jax": "0.1", "jax-cuda12-plugin": "0.1"}, ["jax[cuda12]>=", "numpy==1.0"]),
        ({"jax": "0.1", "libtpu": "0.1"}, ["jax[tpu]>=", "numpy==1.0"]),
        ({"jax-cuda12-plugin": "99.0"}, []),
        ({"flax": "0.1"}, ["flax>=", "numpy==1.0"]),
        ({"protobuf": "5.29.6"}, ["protobuf>=", "numpy==1.0"]),
    ],
)
def test_what_is_installed_in_a_runtime(changes, wanted):
    """Nothing where all is there; NumPy and a new JAX stay; pins are of what is missing."""
    found = install.wanted(LINES, (NEW | changes).get)
    assert len(found) == len(wanted)
    assert all(f.startswith(w) for f, w in zip(found, wanted, strict=True))


def test_in_an_empty_runtime_it_is_the_requirements_of_this_python():
    found = install.wanted(LINES, {}.get)
    assert len(found) == len(set(PINNED))
    assert not any(package.startswith(("jax==", "flax==")) for package in found)
    assert all(package.count("==") == 1 for package in found[2:])


def test_no_version_of_jax_stands_in_the_first_cell_or_its_script():
    setup = execute.read(execute.NOTEBOOKS[0]).cells[1].source
    for text in (setup, (execute.FOLDER / "install.py").read_text()):
        assert not re.search(r"jax(lib)?(\[\w+\])?\s*[=<>~]=\s*\d", text)
