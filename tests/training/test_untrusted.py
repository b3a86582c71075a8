"""Checkpoints from others: reading one unpickles nothing and runs none of its content."""

import subprocess
import sys
from pathlib import Path

from tests.training.toy import run

ROOT = Path(__file__).resolve().parents[2]

READ = """
import pickle
import sys
from pathlib import Path
from sasa_jax.training import Checkpoints, make_plan, make_program, data_mesh, saved_digest
from tests.training.toy import ToyTask, make_config

config = make_config()
program = make_program(ToyTask(), config, make_plan(config, 40), data_mesh())
seen = []
FORBIDDEN = ("pickle.find_class", "os.system", "os.exec", "subprocess.Popen")
sys.addaudithook(lambda event, args: seen.append(event) if event in FORBIDDEN else None)
folder = Path(sys.argv[1])
with Checkpoints(folder, read_only=True) as checkpoints:
    assert checkpoints.restore_newest(program.state, lambda config: None).step == 20
    checkpoints.arrays(20)
saved_digest(folder)
assert seen == [], seen
pickle.loads(pickle.dumps(folder))
assert seen, "the hook does not hear"
print("nothing was executed")
"""


def test_reading_a_checkpoint_executes_nothing(tmp_path):
    run(tmp_path)
    command = [sys.executable, "-c", READ, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "nothing was executed\n"
