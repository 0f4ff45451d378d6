"""What `aneurysm predict` is given: checkpoints told from series, and the series at each path, once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from aneurysm.errors import DataError, Reason, UsageError
from aneurysm.objects.url import is_url

if TYPE_CHECKING:
    from aneurysm.inference.failure import Failure
    from aneurysm.inference.series_paths import SeriesPath


def split(paths: list[str]) -> tuple[list[Path], list[str]]:
    """Tell checkpoints from series; of a run's folder its best checkpoint is meant."""
    checkpoints, series = [], []
    for text in paths:
        try:
            checkpoint = None if is_url(text) else _checkpoint(Path(text))
        except OSError as error:
            raise UsageError(f"{text} can't be read: {error.strerror or error}") from error
        if checkpoint is None:
            series.append(text)
        else:
            checkpoints.append(checkpoint)
    if not checkpoints or not series:
        lacking = "series" if checkpoints else "checkpoint (*.ckpt, or a run's folder)"
        raise UsageError(f"no {lacking} among {', '.join(paths)}")
    return checkpoints, series


def _checkpoint(path: Path) -> Path | None:
    best = path / "checkpoints" / "best.ckpt"
    if best.is_file():
        return best
    if best.parent.is_dir() or (path / "config.toml").is_file():
        raise UsageError(
            f"{path} is a run's folder that has no best checkpoint yet: name one of its checkpoints, or leave it out"
        )
    if path.suffix != ".ckpt":
        return None
    if not path.is_file():
        raise UsageError(f"there is no checkpoint {path}")
    return path


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
    from aneurysm.inference.failure import failure
    from aneurysm.inference.series_paths import find_paths, is_same, name_by_place, unnamed_place

    found: dict[str, tuple[str, SeriesPath]] = {}
    absent: dict[str, Failure] = {}
    for path in paths:
        try:
            there = find_paths(path, local_cache=local_cache, local_cache_gb=local_cache_gb)
        except DataError as error:
            reason = Reason.READ_ERROR if isinstance(error.__cause__, OSError) else Reason.NO_IMAGES
            name = name_by_place(path)
            absent[name] = failure(name, reason, str(error))
            continue
        for one in there:
            where, other = found.setdefault(one.uid, (path, one))
            if other is one:
                if (place := unnamed_place(one)) is not None:
                    typer.echo(f"{place} has no SeriesInstanceUID: it is called {one.uid}", err=True)
            elif not is_same(one, other):
                raise UsageError(
                    f"{where} and {path} hold different files of series {one.uid}: name one of them, or put all files "
                    "of the series into one folder"
                )
    return [one for _, one in found.values()], list(absent.values())
