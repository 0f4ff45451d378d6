"""RunFolder: where a run keeps what."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from aneurysm.cache.publish import no_space_told
from aneurysm.errors import UsageError
from aneurysm.training.config import TrainConfig


@dataclass(frozen=True)
class RunFolder:
    """
    Paths of a run.

    ::

        config.toml  folds.csv  [init.json]  metrics.csv  predictions_val.csv  candidates_val.csv  log.txt
        tensorboard/  checkpoints/{last,best}.ckpt
    """

    root: Path

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
        """What the run began with, if not with random weights; see `aneurysm.training.begun`."""
        return self.root / "init.json"

    @property
    def metrics(self) -> Path:
        """A row per epoch."""
        return self.root / "metrics.csv"

    @property
    def predictions(self) -> Path:
        """Probabilities and labels of the held-out series, of the best epoch."""
        return self.root / "predictions_val.csv"

    @property
    def candidates(self) -> Path:
        """The most probable places in the held-out series, of the same epoch."""
        return self.root / "candidates_val.csv"

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
        """From which a run goes on."""
        return self.root / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        """The weights of the best epoch, to predict with."""
        return self.root / "checkpoints" / "best.ckpt"

    def create(self) -> None:
        """
        Make the folder.

        Raises
        ------
        UsageError
            There is a run in it already, or it can't be made.
        """
        if self.config.exists():
            go_on = (
                f"Go on with it: --out {self.root} --resume" if self.last.exists() else "It was never saved: remove it"
            )
            raise UsageError(f"{self.root} holds a run. {go_on}; or name another")
        try:
            self.last.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"the folder {self.root} can't be made: {error.strerror}") from error


def full_disk_told(folder: RunFolder) -> AbstractContextManager[None]:
    """Turn the operating system's error of a full disk into a `NoSpaceError`."""
    go_on = f"free some space, and go on with --out {folder.root} --resume"
    return no_space_told(
        folder.root, f"The last checkpoint is whole: {go_on}; if there is none yet, remove the folder, and begin again"
    )


def default_root(config: TrainConfig) -> Path:
    """Return ``runs/<time>-<model>-fold<K>``."""
    model = "".join(c if c.isalnum() or c in "._-" else "-" for c in config.model)
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{model}-fold{config.fold}"


def newest_run(runs: Path = Path("runs")) -> Path:
    """
    Return the run of ``runs`` that was saved last.

    Raises
    ------
    UsageError
        None has been saved.
    """
    saved = [(path.stat().st_mtime, path.parent.parent) for path in runs.glob("*/checkpoints/last.ckpt")]
    if not saved:
        raise UsageError(f"there is no run to be resumed in {runs}: name its folder with --out")
    return max(saved)[1]


@contextmanager
def log_file(path: Path, *, wanted: bool) -> Iterator[None]:
    """Write what the package says to the run's log.txt, too."""
    if not wanted:
        yield
        return
    package = logging.getLogger("aneurysm")
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.setLevel(logging.INFO)
    level = package.level
    package.setLevel(logging.INFO)
    package.addHandler(handler)
    try:
        yield
    except BaseException as error:
        # To the file alone: whoever called shows the error in a way of its own.
        told = f"ended by {type(error).__name__}: {error}"
        handler.handle(package.makeRecord(package.name, logging.ERROR, __file__, 0, told, (), None))
        raise
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        handler.close()
