"""What `aneurysm predict` is given: checkpoints and series, each recognised, and the series at each path, once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from aneurysm.errors import DataError, Reason, UsageError
from aneurysm.inputs import InputKind, Wanted, describe, mistake
from aneurysm.remote.url import is_url
from aneurysm.training.run_folder import FoldsFolder

if TYPE_CHECKING:
    from aneurysm.inference.read_series import Failure
    from aneurysm.inference.series_paths import SeriesPath


def split(paths: list[str]) -> tuple[list[Path], list[str]]:
    """
    Return checkpoints and series; of a run's folder its best checkpoint is meant, of all folds' each one's.

    Raises
    ------
    UsageError
        A path leads to neither, or there are none of the one or the other.
    """
    checkpoints: list[Path] = []
    series: list[str] = []
    for text in paths:
        of_path = [] if is_url(text) else _checkpoints(text)
        checkpoints += of_path
        if not of_path:
            series.append(text)
    if not checkpoints or not series:
        lacking = "series" if checkpoints else "checkpoint (*.ckpt, or a run's folder)"
        raise UsageError(f"no {lacking} among {', '.join(paths)}")
    return checkpoints, series


def _checkpoints(text: str) -> list[Path]:
    """Return the checkpoints that a path means; none if it means series."""
    described = describe(text)
    # Such a folder is one of no kind that `describe` knows; what can't be read is told below.
    if described.kind != InputKind.UNREADABLE and (folds := FoldsFolder(Path(text))).config.is_file():
        return [checkpoint for run in folds.runs() for checkpoint in _checkpoints(str(run.root))]
    if described.kind == InputKind.RUN or (
        described.kind == InputKind.FOLDER and (described.path / "config.toml").is_file()
    ):
        if described.better is None:
            raise UsageError(
                f"{text} is a run's folder that has no best checkpoint yet: name another of its checkpoints"
            )
        return [described.better]
    if described.kind == InputKind.CHECKPOINT:
        return [described.path]
    if described.kind == InputKind.MISSING and text.endswith(".ckpt"):
        raise UsageError(f"there is no checkpoint {text}")
    if problem := mistake(described, Wanted.SERIES):
        raise UsageError(problem)
    return []


def find(
    paths: list[str], local_cache: str | None, local_cache_gb: float | None
) -> tuple[list[SeriesPath], list[Failure]]:
    """
    Return the series at ``paths``, each once, and a failure for each path that holds none.

    Raises
    ------
    UsageError
        Two paths hold other files of one series, of which only one could be answered for.
    """
    from aneurysm.inference.read_series import failure
    from aneurysm.inference.series_paths import find_paths, is_same, name_by_place, unnamed_place

    by_uid: dict[str, tuple[str, SeriesPath]] = {}
    absent: dict[str, Failure] = {}
    for number, path in enumerate(paths, 1):
        try:
            at_path = find_paths(path, local_cache=local_cache, local_cache_gb=local_cache_gb)
        except DataError as error:
            name, which = name_by_place(path), f"path {number} of {len(paths)} of series"
            if isinstance(error.__cause__, OSError):
                detail = f"{which} can't be read: {error.__cause__.strerror or 'input/output error'}"
                absent[name] = failure(name, Reason.READ_ERROR, detail)
            else:
                # A row, and what is shown of it, names no folder: its name may be a patient's.
                absent[name] = failure(name, Reason.NO_IMAGES, f"{which}: {_without(path, str(error))}")
            continue
        for one in at_path:
            where, other = by_uid.setdefault(one.uid, (path, one))
            if other is one:
                if (place := unnamed_place(one)) is not None:
                    # What lies below a folder that was named may be called as a patient is.
                    where = path if is_url(path) or place == os.path.realpath(path) else f"a series in {path}"
                    typer.echo(
                        f"{where} has no SeriesInstanceUID: it is called {one.uid}, by the SHA-256 of its place",
                        err=True,
                    )
            elif not is_same(one, other):
                raise UsageError(
                    f"{where} and {path} hold different files of series {one.uid}: name one of them, or put all files "
                    "of the series into one folder"
                )
    return [one for _, one in by_uid.values()], list(absent.values())


def _without(path: str, message: str) -> str:
    """Return a message for a row of a table, which is passed on: without the path that it is about."""
    for text in sorted({path, str(Path(path).absolute()), os.path.realpath(path)}, key=len, reverse=True):
        message = message.replace(text, "it")
    return message
