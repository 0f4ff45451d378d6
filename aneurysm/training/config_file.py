"""TOML file and options -> TrainConfig, with errors that name the key; and back, for config.toml of a run."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, ValidationError

from aneurysm.documents import format_problem, read_toml
from aneurysm.errors import UsageError
from aneurysm.patches.views.config import VIEWS
from aneurysm.training.config import ResolvedConfig, TrainConfig

_Config = TypeVar("_Config", bound=TrainConfig)


def load_config(path: str | Path | None, options: Mapping[str, Any] | None = None) -> TrainConfig:
    """
    Return the configuration of a TOML file, in which ``options`` replace what they name.

    Parameters
    ----------
    path
        None: nothing but defaults.
    options
        By key as in the file, those of a section with a dot: ``{"epochs": 3, "optimizer.learning_rate": 1e-3}``.

    Raises
    ------
    UsageError
        The file can't be read or is not TOML; a key is unknown, with the nearest that there is; a value is impossible.
    """
    content: dict[str, Any] = {} if path is None else _read(Path(path))
    for key, value in (options or {}).items():
        *sections, name = key.split(".")
        table = content
        for section in sections:
            table = table.setdefault(section, {})
        table[name] = value
    return parse_config(content, "options" if path is None else str(path))


def parse_config(content: Mapping[str, Any], source: str) -> TrainConfig:
    """Check a table of a file or a checkpoint; ``source`` is what errors call it. Raises `UsageError`."""
    return _validated(TrainConfig, content, source)


def parse_resolved(content: Mapping[str, Any], source: str) -> ResolvedConfig:
    """Check what a run or a checkpoint wrote; ``source`` is what errors call it. Raises `UsageError`."""
    return _validated(ResolvedConfig, content, source)


def read_resolved(path: Path) -> ResolvedConfig:
    """Read config.toml of a run. Raises `UsageError`."""
    return parse_resolved(_read(path), str(path))


def config_toml(config: TrainConfig) -> str:
    """Return the configuration as TOML; `read_resolved` or `load_config` gives it back."""
    return tomli_w.dumps(config_table(config))


def config_table(config: TrainConfig) -> dict[str, Any]:
    """Return the configuration as plain values, what is open left out: for TOML and checkpoints."""
    return config.model_dump(mode="json", exclude_none=True)


def _validated(kind: type[_Config], content: Mapping[str, Any], source: str) -> _Config:
    try:
        return kind.model_validate(dict(content))
    except ValidationError as error:
        problems = _by_key(dict(e) for e in error.errors())
        first = next(iter(problems.values()))
        more = f" ({len(problems) - 1} more keys are wrong)" if len(problems) > 1 else ""
        raise UsageError(f"{source}: {first}{more}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_toml(path)
    except FileNotFoundError as error:
        raise UsageError(f"there is no configuration file {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the configuration file {path} can't be read: {error}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error


def _by_key(errors: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Return what is wrong, by key; of a value that may be of several kinds, what each of them asks for."""
    problems: dict[str, str] = {}
    for error in errors:
        # The last parts of such a key's place name the kind, as literal['auto'] or constrained-int.
        loc = tuple(takewhile(lambda part: isinstance(part, int) or part.isidentifier(), error["loc"]))
        if loc[:1] == ("view",):  # which kind of view it is stands in its place, too
            error, loc = {**error, "kind": loc[1:2]}, ("view", *loc[2:])
        key, first = ".".join(map(str, loc)), problems.get(".".join(map(str, loc)))
        if first is None or len(loc) == len(error["loc"]) - len(error.get("kind", ())):
            problems[key] = _problem({**error, "loc": loc})
        else:
            message = str(error["msg"]).removeprefix("Input should be ").partition(",")[0]
            problem, separator, value = first.rpartition(" (found ")
            problems[key] = f"{problem}, or {message}{separator}{value}"
    return problems


def _problem(error: dict[str, Any]) -> str:
    problem = format_problem(error)
    if error["type"] != "extra_forbidden":
        return problem
    *sections, key = (str(part) for part in error["loc"])
    names = _keys([*sections[:1], *error.get("kind", ()), *sections[1:]])
    near = difflib.get_close_matches(key, names, n=1)
    return f"{problem}: did you mean {near[0]}?" if near else f"{problem}: there are {', '.join(names)}"


def _keys(sections: list[str]) -> list[str]:
    """Return the keys of a section, given by the path to it."""
    model: type[BaseModel] = TrainConfig
    if sections[:1] == ["view"]:
        kinds = {kind.model_fields["name"].default: kind for kind in VIEWS}
        return list(kinds[sections[1]].model_fields)
    for section in sections:
        found = model.model_fields[section].annotation
        if not (isinstance(found, type) and issubclass(found, BaseModel)):
            return []
        model = found
    return list(model.model_fields)
