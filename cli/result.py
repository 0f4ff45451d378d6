"""Result: what a command that builds or checks a cache says in the end, in sentences or, with --json, as one object."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final

import typer

from aneurysm.cli.exits import Exit

_VERSION: Final = 1
"""Of the keys, which docs/for-data-engineers.md lists: a key that goes, or means something else, raises it."""

JsonOption = Annotated[
    bool,
    typer.Option("--json", help="One JSON object on standard output, in the end; what else is said goes to stderr."),
]


class Result:
    """What ``command`` says, and its end; with ``as_json`` standard output has nothing but the object."""

    def __init__(self, command: str, *, as_json: bool) -> None:
        self._command, self._as_json = command, as_json

    def say(self, text: str) -> None:
        """Say a sentence."""
        typer.echo(text, err=self._as_json)

    def end(self, code: Exit, facts: dict[str, Any], *, exit_zero: bool = False) -> None:
        """End with ``code``, or with 0 if that is 8 and ``exit_zero``; the object has ``facts``, and the ``code``."""
        if self._as_json:
            head = {"version": _VERSION, "command": self._command, "exit_code": int(code)}
            typer.echo(json.dumps(head | facts, indent=2))
        raise typer.Exit(Exit.OK if exit_zero and code == Exit.SOME_FAILED else code)
