"""RunFolder: where a run keeps what."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aneurysm.errors import NoSpaceError, UsageError
from aneurysm.processes.files import is_disk_full, sweep_temporaries
from aneurysm.processes.locks import take_lock
from aneurysm.processes.shared_folder import describe_denial

if TYPE_CHECKING:  # it loads torch
    from aneurysm.training.config import TrainConfig

_held: Final[set[int]] = set()
"""Descriptors of the locks that this process has on runs."""


def _let_go_in_child() -> None:
    # A worker that lives on for a moment when this process was killed must not keep the run from being resumed.
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go_in_child)


@dataclass(frozen=True)
class RunFolder:
    """
    Paths of a run.

    ::

        config.toml  folds.csv  [init.json]  metrics.csv  predictions_val.csv  log.txt
        tensorboard/  checkpoints/{last,best}.ckpt
    """

    root: Path

    @property
    def lock(self) -> Path:
        """Locked while a process trains in the folder."""
        return self.root / ".lock"

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.toml"

    @property
    def folds(self) -> Path:
        """The fold of each series, as `aneurysm.training.folds.read_folds` reads it."""
        return self.root / "folds.csv"

    @property
    def init(self) -> Path:
        """What the run began with, if not with random weights; see `aneurysm.training.lineage`."""
        return self.root / "init.json"

    @property
    def metrics(self) -> Path:
        """A row per epoch."""
        return self.root / "metrics.csv"

    @property
    def predictions(self) -> Path:
        """Probabilities, candidates and labels of the held-out series, of the best epoch."""
        return self.root / "predictions_val.csv"

    @property
    def log(self) -> Path:
        """What was said."""
        return self.root / "log.txt"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.root / "tensorboard"

    @property
    def last(self) -> Path:
        """From which a run resumes."""
        return self.root / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        """The weights of the best epoch, to predict with."""
        return self.root / "checkpoints" / "best.ckpt"

    def check_unused(self) -> None:
        """Raise `UsageError` if there is a run in the folder, or one of each fold."""
        FoldsFolder(self.root).check_unused()
        if self.config.exists():
            go_on = (
                f"Go on with it: --out {self.root} --resume" if self.last.exists() else "It was never saved: remove it"
            )
            raise UsageError(f"{self.root} holds a run. {go_on}; or name another")

    def create(self) -> None:
        """Make the folder. Raises `UsageError` if it can't be made."""
        try:
            self.last.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if is_disk_full(error):
                raise
            raise UsageError(f"the folder {self.root} can't be made: {error.strerror}") from error


@dataclass(frozen=True)
class FoldsFolder:
    """
    Paths of the runs of all folds, a `RunFolder` each.

    ::

        folds.toml  folds.csv  fold0/  fold1/  ...  evaluation/
    """

    root: Path

    @property
    def config(self) -> Path:
        """The configuration that the runs have in common."""
        return self.root / "folds.toml"

    @property
    def folds(self) -> Path:
        """The fold of each series, in all runs."""
        return self.root / "folds.csv"

    @property
    def evaluation(self) -> Path:
        """The report of all folds together."""
        return self.root / "evaluation"

    def run(self, fold: int) -> RunFolder:
        """Return the run that holds a fold out."""
        return RunFolder(self.root / f"fold{fold}")

    def runs(self) -> list[RunFolder]:
        """Return the runs that are there, by fold; finished or not."""
        names = (path.name.removeprefix("fold") for path in self.root.glob("fold*") if path.is_dir())
        return [self.run(fold) for fold in sorted(int(name) for name in names if name.isascii() and name.isdigit())]

    def check_unused(self) -> None:
        """Raise `UsageError` if there are runs of all folds in the folder."""
        if self.config.exists():
            raise UsageError(f"{self.root} holds runs of all folds. Go on with them: --out {self.root} --resume")


@contextmanager
def locked_run(folder: RunFolder) -> Iterator[None]:
    """
    Keep other processes from training in a folder, which is made if need be; sweep what dead ones left in it.

    Of the processes of one run the first one does so.

    Raises
    ------
    UsageError
        Another process trains in it, or it can't be made.
    """
    made = [path for path in (folder.root, *folder.root.parents) if not path.exists()]
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
        descriptor = take_lock(folder.lock)
    except OSError as error:
        if is_disk_full(error):
            raise
        raise UsageError(f"the folder {folder.root} can't be made: {describe_denial(error)}") from error
    if descriptor is None:
        raise UsageError(
            f"another process is training in {folder.root}: wait until it has ended, or name another folder with --out"
        )
    _held.add(descriptor)
    try:
        sweep_temporaries(folder.root)
        sweep_temporaries(folder.last.parent)
        yield
    finally:
        with suppress(OSError):
            folder.lock.unlink(missing_ok=True)
            for path in made:
                path.rmdir()  # unless there is something in it by now
        _held.discard(descriptor)
        os.close(descriptor)


@contextmanager
def raise_full_disk(folder: RunFolder) -> Iterator[None]:
    """Turn every error of a full disk, and what cleaning up made of it, into a `NoSpaceError` that says what to do."""
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        # Saving a checkpoint says more than that the disk is full.
        what = str(error) if isinstance(error, NoSpaceError) else f"the disk of {folder.root} is full"
        if folder.last.exists():
            advice = f"The last checkpoint is whole: free some space, and go on with --out {folder.root} --resume"
        elif folder.config.exists():
            advice = f"There is no checkpoint to go on from yet: free some space, remove {folder.root}, and begin again"
        else:
            advice = "Free some space, and give the command again"
        raise NoSpaceError(f"{what}. {advice}") from error


def default_root(config: TrainConfig) -> Path:
    """Return ``runs/<time>-<model>-fold<K>``."""
    return _new_root(config, f"fold{config.fold}")


def default_folds_root(config: TrainConfig) -> Path:
    """Return ``runs/<time>-<model>-folds``."""
    return _new_root(config, "folds")


def _new_root(config: TrainConfig, ending: str) -> Path:
    model = "".join(c if c.isalnum() or c in "._-" else "-" for c in config.model)
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{model}-{ending}"


def newest_run(runs: Path = Path("runs")) -> Path:
    """
    Return the run of ``runs``, or the folder of runs of all folds, that was saved last.

    Raises
    ------
    UsageError
        None has been saved.
    """
    saved = [(path.stat().st_mtime, path.parent.parent) for path in runs.glob("*/checkpoints/last.ckpt")]
    saved += [
        (path.stat().st_mtime, path.parents[2])
        for path in runs.glob("*/fold*/checkpoints/last.ckpt")
        if FoldsFolder(path.parents[2]).config.exists()
    ]
    if not saved:
        raise UsageError(f"there is no run to be resumed in {runs}: name its folder with --out")
    return max(saved)[1]


class _LogFile(logging.FileHandler):
    """A log that a full disk cuts short, and no more: the run is ended by the first file that has to be whole."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Leave out logging's traceback of each line that can't be written."""


@contextmanager
def log_file(path: Path, *, wanted: bool) -> Iterator[None]:
    """Write what the package says to the run's log.txt, too."""
    if not wanted:
        yield
        return
    package = logging.getLogger("aneurysm")
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.setLevel(logging.INFO)
    level = package.level
    package.setLevel(logging.INFO)
    package.addHandler(handler)
    try:
        yield
    except BaseException as error:
        # To the file alone: whoever called shows the error in a way of its own.
        message = f"ended by {type(error).__name__}: {error}"
        handler.handle(package.makeRecord(package.name, logging.ERROR, __file__, 0, message, (), None))
        raise
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        with suppress(OSError):
            handler.close()
