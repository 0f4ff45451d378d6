"""What docs/architecture.md says of packages, files and names is so."""

from __future__ import annotations

import re
import tomllib

import pytest
import yaml

from aneurysm import __version__
from tests.support.run_data import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_packages_stand_in_the_order_that_lint_holds():
    layers = next(
        contract["layers"]
        for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
        if contract.get("containers") == ["aneurysm"]
    )
    named = [cell.strip("`") for cell, *_ in rows("Packages")]
    assert layers[0] == "__main__"
    assert named[1:] == layers[-2:0:-1]


def test_files_and_names_are_there():
    table = rows("Where something new goes")
    assert len(table) >= 10
    for new, files, what in table:
        paths = re.findall(r"`(\w+/[\w/.]*)`", files + what)
        texts = [(ROOT / path).read_text() for path in paths if not path.endswith("/")]
        assert [path for path in paths if not (ROOT / path).exists()] == [], new
        names = set(re.findall(r"`([\w.]+)`", what)) - set(paths)
        assert [name for name in names if not any(name in text for text in texts)] == [], new


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_files_that_are_named_are_there(page):
    named = re.findall(r"`(\w+/[\w/.]*)`", (ROOT / page).read_text())
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_citation_is_of_this_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
