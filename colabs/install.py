"""Makes the clone that this file lies in importable in the running notebook; for Colab.

What the runtime has stays as it is: packages are installed only where they are missing, at the
versions of requirements.txt. JAX and Flax alone are replaced where they are older than the oldest
that the project is tested with, by the newest that go with the runtime's NumPy (which the notebook
has loaded), for the same accelerator. They are never put back to an older version.
"""

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
REPLACED = ("jax", "flax")  # if they are too old
# By what it is told which accelerator the runtime's JAX is for.
EXTRAS = {"jax-cuda12-plugin": "cuda12", "jax-cuda13-plugin": "cuda13", "libtpu": "tpu"}
# The code generated in tensorflow-metadata 1.21, which comes with TFDS, asks for it when imported;
# its metadata does not.
PROTOBUF = "protobuf>=6.31.1"


def wanted(lines: Iterable[str], installed: Callable[[str], str | None]) -> list[str]:
    """What pip is to install; nothing where all is there.

    Args:
        lines: of requirements.txt.
        installed: the version of a package in the runtime, or None.
    """
    lines = [line.split(" #")[0] for line in lines if line.strip() and not line.startswith("#")]
    requirements = [Requirement(line) for line in lines]
    found = []
    for name in REPLACED:
        pins = [Version(str(r.specifier)[2:]) for r in requirements if r.name == name]
        version = installed(name)
        if version is None or Version(version) < min(pins):
            extras = [extra for plugin, extra in EXTRAS.items() if installed(plugin)]
            marked = f"[{','.join(extras)}]" if extras and name == "jax" else ""
            found.append(f"{name}{marked}>={min(pins)}")
    for requirement in requirements:
        here = requirement.marker is None or requirement.marker.evaluate()
        if here and requirement.name not in REPLACED and installed(requirement.name) is None:
            found.append(f"{requirement.name}{requirement.specifier}")
    if (version := installed("protobuf")) and not Requirement(PROTOBUF).specifier.contains(version):
        found.append(PROTOBUF)
    if found and (version := installed("numpy")):
        found.append(f"numpy=={version}")
    return found


def installed(name: str) -> str | None:
    """The version of a package here, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    """Installs what is wanted and puts the clone on the path, of child processes too."""
    packages = wanted((ROOT / "requirements.txt").read_text().splitlines(), installed)
    if packages:
        print("installing", *packages, flush=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *packages], check=True)
        if "jax" in sys.modules and any(package.startswith("jax") for package in packages):
            raise SystemExit("JAX was replaced: restart the session, then run all cells again")
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
        paths = str(ROOT), os.environ.get("PYTHONPATH", "")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    importlib.invalidate_caches()


if __name__ == "__main__":
    main()
