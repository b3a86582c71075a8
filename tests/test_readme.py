"""The README's own code runs."""

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.mark.slow
def test_the_first_python_block_runs(capsys):
    block = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[1]
    exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "(1, 1000)" in printed and "'group4/block3': (1, 7, 7, 8, 7, 7)" in printed
