"""Command and Group: Typer's, with several values after one option, checked arguments, and usage as it is typed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import typer.core

from aneurysm.errors import UsageError

_FILE_URL: Final = "file:"
_PLACES: Final = ("ANEURYSM_DATA", "ANEURYSM_CACHE", "ANEURYSM_LOCAL_CACHE")


class Command(typer.core.TyperCommand):
    """A command whose list options take several values, ``--series A B C``, and whose usage line shows what to type."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, of which flags and arguments are shown without a type."""
        return _without_types(super().get_params(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the parts of the usage line: arguments as their metavar has them, optional ones in brackets."""
        pieces = [self.options_metavar] if self.options_metavar else []
        for argument in (p for p in self.get_params(ctx) if p.param_type_name == "argument"):
            name = argument.metavar or argument.name.upper()
            pieces.append(name if argument.required else f"[{name}]")
        return pieces

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """
        Parse the command line.

        Raises
        ------
        UsageError
            An argument, or a variable that stands for one, is empty; or there is an argument too many.
        """
        if ctx.resilient_parsing:  # the shell asks for completions of a line that is not whole yet
            return super().parse_args(ctx, args)
        options = {name: param for param in self.get_params(ctx) for name in param.opts if name.startswith("--")}
        several = {name for name, param in options.items() if getattr(param, "multiple", False)}
        ctx.allow_extra_args = True
        super().parse_args(ctx, list(_spread(list(_checked(args)), several)))
        for param in self.get_params(ctx):
            # Typer would pass over it, and a folder of the default's name be made.
            name = param.envvar or ""
            if not os.environ.get(name, "unset").strip() and not _is_typed(ctx, param):
                raise UsageError(f"{name} is set, and empty: give it a value, unset it, or give {param.opts[0]}")
        if ctx.args:
            raise UsageError(_surplus(ctx.args[0], options.keys()))
        return []


class Group(typer.core.TyperGroup):
    """The group of all commands; its flags are shown as a command's are."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, of which flags and arguments are shown without a type."""
        return _without_types(super().get_params(ctx))


def expand_environment() -> None:
    """Expand ``~`` in the variables that name folders: not every program that sets them does."""
    for name in _PLACES:
        if os.environ.get(name, "").startswith("~"):
            os.environ[name] = str(Path(os.environ[name]).expanduser())


def _is_typed(ctx: Any, param: Any) -> bool:
    source = ctx.get_parameter_source(param.name)
    return source is not None and source.name == "COMMANDLINE"


def _without_types(params: list[Any]) -> list[Any]:
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""  # Typer would show <bool>, as if a value were to follow
        elif param.param_type_name == "argument":
            param.display_type_rich = lambda ctx: None  # noqa: ARG005 - its name says it: no <list[str]> beside it
    return params


def _checked(args: list[str]) -> Iterator[str]:
    """Yield the arguments, ``~`` expanded; refuse what would make a path of nothing, or a strange one."""
    option = ""
    for arg in args:
        name, equals, value = arg.partition("=") if arg.startswith("--") else ("", "", arg)
        called = name or option or "an argument"
        if equals or not name:
            if not value.strip():
                raise UsageError(f"{called} is empty: give it a value, or leave it out")
            if "\0" in value:
                raise UsageError(f"{called}: the value holds a null character")
            if value.startswith(_FILE_URL):
                raise UsageError(f"{called} {value}: give the path alone, {unquote(urlsplit(value).path)}")
            # The shell expands ~ only where a word begins, not in --cache=~/x or in quotes: a folder "~" would be made.
            arg = f"{name}{equals}{Path(value).expanduser()}" if value.startswith("~") else arg
        option = arg if name and not equals else ""
        yield arg


def _spread(args: list[str], several: set[str]) -> Iterator[str]:
    """Yield the arguments, ``--series A B`` as ``--series A --series B``."""
    option, first = "", False
    for i, arg in enumerate(args):
        if arg == "--":
            yield from args[i:]
            return
        if option and (first or not arg.startswith("-")):
            yield from ((arg,) if first else (option, arg))
            first = False
            continue
        name, equals, _ = arg.partition("=")
        option, first = (name, not equals) if name in several else ("", False)
        yield arg


def _surplus(arg: str, options: Any) -> str:
    """Return what to say of an argument that has no place."""
    if "--spec" in options:  # precache, which is as often given both by place
        advice = "the data are named with --data, the cache with --cache"
    elif "--modality" in options and re.fullmatch("[A-Z0-9]{2,4}", arg):
        advice = "modalities follow --modality"
    elif "--cache" in options:
        advice = f"the cache is named with --cache, as --cache {arg}"
    else:
        advice = "give it with an option, or leave it out"
    return f"unexpected argument {arg!r}: {advice}"
