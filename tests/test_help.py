"""`python main.py --help` names every mode and flag, and what it says for bash works there."""

import os
import re
import subprocess
import sys
from pathlib import Path

from absl import flags

import main

ROOT = Path(main.__file__).parent
FLAGS = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(main)}
ELSEWHERE = {"help", "verbosity"}


def test_every_mode_is_explained_and_every_flag_in_the_text_exists():
    modes = re.findall(r"^  (\w+)  +\S", main.__doc__, re.M)
    assert tuple(modes) and set(modes) == set(main._MODES)
    assert set(re.findall(r"--([a-z_]+)", main.__doc__)) <= FLAGS | ELSEWHERE
    assert max(map(len, main.__doc__.splitlines())) <= 100


def test_what_completes_in_bash_are_the_flags_and_modes():
    (line,) = re.findall(r"^  (words=.*)$", main.__doc__, re.M)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-c", f'{line}; compgen -W "$words"']
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert set(done.stdout.split()) == {f"--{name}=" for name in FLAGS} | set(main._MODES)
