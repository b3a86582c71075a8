"""The documents name every key and nothing that is not there."""

import re
from pathlib import Path

import pytest

from configs import common

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def keys(config, prefix=""):
    """Dotted names of all leaves."""
    for name in config:
        if hasattr(config[name], "items"):
            yield from keys(config[name], f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_key_of_a_config_is_documented_and_no_other():
    known = {*keys(common.classification_config()), *keys(common.detection_config())}
    named, section = set(), ""
    for cell in re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "config.md").read_text(), re.M):
        for name in re.findall(r"`([\w.]+)`", cell):
            section = name.rpartition(".")[0] or section if not name.startswith(".") else section
            named.add(section + name if name.startswith(".") else name)
    assert named == known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text())
    local = [link for link in links if "://" not in link]
    missing = [link for link in local if not (page.parent / link).exists()]
    assert not missing
