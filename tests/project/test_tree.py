"""The documentation names what exists, and no file names a place that only one machine has."""

import re
import subprocess
from pathlib import Path

import pytest

from tools.local.stack import ROOT

DOCUMENTS = sorted(p for p in ROOT.rglob("*.md") if not any(part.startswith(".") for part in p.relative_to(ROOT).parts))
# Written as fragments, so that this file does not contain what it looks for.
FORBIDDEN = re.compile(
    "|".join(["/" + "work/", "/" + "farm/", "index" + "-url", "pypi" + r"\.org", "registry" + r"\.npmjs", "repo1" + r"\.maven"])
)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_path_in_a_document_exists(document: Path) -> None:
    text = document.read_text()
    links = {(document.parent / link).resolve() for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text)}
    code = re.findall(r"`((?:services|libs|tools|protos|docs|tests|deploy)/[\w./-]+\.\w+)`", text)
    missing = [str(path) for path in (*links, *(ROOT / name for name in code)) if not path.exists()]
    assert not missing


def test_every_symbol_of_the_path_table_exists() -> None:
    rows = re.findall(r"`((?:services|libs)/[\w/]+\.py)` `(\w+)`", (ROOT / "README.md").read_text())
    assert rows
    assert [row for row in rows if row[1] not in (ROOT / row[0]).read_text()] == []


def test_no_tracked_file_names_a_machine_or_a_registry() -> None:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    found = []
    for name in filter(None, names):
        path = ROOT / name
        if path.is_file() and FORBIDDEN.search(path.read_text(errors="ignore")):
            found.append(name)
    assert found == []


def test_make_alone_prints_help() -> None:
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("demo", "test", "lint", "proto", "bench"):
        assert f"make {target}" in done.stdout
