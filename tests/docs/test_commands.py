"""Commands and options that stand in README.md and docs/ are such as there are. test_pages.py runs some of them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from aneurysm.cli.main import app
from tests.support.run_data import ROOT

PAGES = {path.stem: path.read_text() for path in [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]}
GROUP = get_command(app)
assert isinstance(GROUP, TyperGroup)
COMMANDS = GROUP.commands
OPTIONS = {name: {o for p in c.params for o in (*p.opts, *p.secondary_opts)} for name, c in COMMANDS.items()}


def typed(line: str) -> Iterator[list[str]]:
    """The arguments of ours in a line of shell, be it another program's argument."""
    words = shlex.split(line, comments=True)
    for i, word in enumerate(words):
        if word == "aneurysm" and words[0] != "pip":
            yield words[i + 1 :]
        elif "aneurysm " in word:
            yield from typed(word)


def blocks(text: str) -> Iterator[list[str]]:
    shell = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    shell += re.findall(r"^ {4}(.*)", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    for line in "\n".join(shell).replace("\\\n", " ").splitlines():
        if re.search(r"\baneurysm ", line):
            yield from typed(line)


def phrases(text: str) -> Iterator[str]:
    """What stands in backquotes within prose and tables, where it has options."""
    prose = re.sub(r"^```(?s:.*?)^```|^ {4}.*", "", text, flags=re.MULTILINE)
    return (phrase for phrase in re.findall(r"`([^`]+)`", prose) if "--" in phrase)


def unknown(phrase: str, commands: list[str]) -> list[str]:
    """The options that the command of a phrase, or of one without any command each of these, does not have."""
    named = re.match(r"aneurysm ([a-z]+)", phrase)
    found = re.findall(r"(?<!\S)--[a-z][a-z-]*", phrase)
    return min(([o for o in found if o not in OPTIONS[c]] for c in ([named[1]] if named else commands)), key=len)


def test_there_are_commands_and_options_on_the_pages():
    assert {name for text in PAGES.values() for name, *_ in blocks(text)} == set(COMMANDS)
    assert any("aneurysm precache" in phrase for text in PAGES.values() for phrase in phrases(text))


@pytest.mark.parametrize("page", PAGES)
def test_commands_can_be_parsed_as_they_stand(page):
    for name, *arguments in blocks(PAGES[page]):
        COMMANDS[name].make_context(name, arguments).close()


@pytest.mark.parametrize("page", PAGES)
def test_options_in_the_text_are_some_command_s(page):
    for phrase in phrases(PAGES[page]):
        if not phrase.startswith("pip "):
            assert unknown(phrase, list(COMMANDS)) == [], f"in {phrase!r}"


def test_the_readme_s_table_gives_each_command_its_own_options():
    rows = re.findall(r"^\| `aneurysm ([a-z]+).*?`(.*)", PAGES["README"], re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(COMMANDS)
    for name, text in rows:
        for phrase in phrases(text):
            assert unknown(phrase, [name]) == [], f"in {phrase!r}"


def test_a_wrong_one_would_be_found():
    assert list(blocks("    srun aneurysm verify --deeper   # it's\n\n    sbatch --wrap 'aneurysm info --x'")) == [
        ["verify", "--deeper"], ["info", "--x"],
    ]  # fmt: skip
    with pytest.raises(Exception, match=r"No such option.*--deeper"):
        COMMANDS["verify"].make_context("verify", ["--deeper"])
    (row,) = phrases("| a file was replaced | `--series UID --overwrit` |")
    assert unknown(row, list(COMMANDS)) == ["--overwrit"]
    assert unknown("aneurysm verify --series", list(COMMANDS)) == ["--series"]
