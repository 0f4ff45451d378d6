"""Lineage: the checkpoint that a run began with, and the series it was trained on; kept as the run's init.json.

Weights that were trained on a patient answer too well when he is held out. Another cache has other folds, and another
fold's run was trained on all but its own: so whoever scores a run has to know what came before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aneurysm.documents import read_json
from aneurysm.errors import DataError
from aneurysm.processes.files import write_json
from aneurysm.training.folds import fold_rows

if TYPE_CHECKING:  # evaluating needs this file, but not torch
    from aneurysm.training.config import TrainConfig
    from aneurysm.training.run_folder import RunFolder


@dataclass(frozen=True)
class Lineage:
    """
    What a run began with.

    Attributes
    ----------
    checkpoint
        As it was named.
    trained_on
        Patient's key (empty if not known) by UID, of the series that its weights may have been trained on.
    known
        Whether these are all; False where the checkpoint, or one before it, lay outside of its run's folder.
    """

    checkpoint: str
    trained_on: dict[str, str]
    known: bool

    def seen(self, patient_keys: Mapping[str, str]) -> set[str]:
        """Return which of the series, given with their patient's key, are of a patient that was trained on."""
        # Keys of another cache are others: a patient is also known by a series of his that is in both.
        patients = {
            *self.trained_on.values(),
            *(key for uid, key in patient_keys.items() if uid in self.trained_on),
        } - {""}
        return {uid for uid, key in patient_keys.items() if uid in self.trained_on or key in patients}

    def describe(self, held_out: Iterable[str], patient_keys: Mapping[str, str]) -> str:
        """Return what that means for scores of the series ``held_out``; ``patient_keys`` may be of more."""
        uids = set(held_out)
        seen = len(uids & self.seen(patient_keys))
        began = f"the weights began from {self.checkpoint}"
        if seen:
            return (
                f"{began}, in whose training folds are the patients of {seen} of the {len(uids)} held-out series: "
                "scores of these are too good"
            )
        if not self.known:
            return f"{began}: whether that was trained on held-out patients is not known, and scores may be too good"
        return f"{began}, which was trained on none of the held-out patients"


def training_series(folder: RunFolder, config: TrainConfig) -> tuple[dict[str, str], bool]:
    """
    Return the series that the weights of a run may have been trained on, and whether these are all.

    Those of its training folds, whatever else the configuration leaves out, and those of what it began with.

    Returns
    -------
    tuple
        Patient's key (empty if not known) by UID; False if there may be others.

    Raises
    ------
    DataError
        A file of the run is missing or damaged.
    """
    rows = fold_rows(folder.folds)
    own = {uid: key for uid, (key, fold) in rows.items() if fold not in (config.fold, config.test_fold)}
    before = read_lineage(folder.init)
    return (own, True) if before is None else (before.trained_on | own, before.known)


def write_lineage(path: Path, lineage: Lineage) -> None:
    """Write init.json."""
    write_json(path, {"checkpoint": lineage.checkpoint, "known": lineage.known, "trained_on": lineage.trained_on})


def read_lineage(path: Path) -> Lineage | None:
    """
    Read init.json; None if there is none, because the run began with random weights.

    Raises
    ------
    DataError
        It is damaged.
    """
    try:
        content = read_json(path)
        series = {str(uid): str(key) for uid, key in content["trained_on"].items()}
        return Lineage(str(content["checkpoint"]), series, bool(content["known"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged: {type(error).__name__} {error}") from error
