"""The probabilities of a model -> those of an answer: temperatures, the gate, and base rates where there is none.

Temperatures come from calibration.json, which `aneurysm evaluate` fits. One belongs to the very weights whose held-out
predictions it was fitted on, so the file names them by the SHA-256 of their checkpoints.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aneurysm.documents import MOST_JSON, parse_json, read_bounded
from aneurysm.errors import UsageError
from aneurysm.labels import LABELS, SITES
from aneurysm.probability import apply_temperature

CALIBRATION_FORMAT: Final = 2
"""Of calibration.json. Version 1 did not name the checkpoints."""
FILE_NAME: Final = "calibration.json"
_REPORT: Final = "evaluation"
PUBLISHED_RATES: Final = (0.03,) * 6 + (366 / 4348, 46 / 4348) + (0.03,) * 5 + (1864 / 4348,)
"""
Shares of positives among the 4,348 series of the competition's train.csv, as published: 1,864 with an aneurysm, and by
site 46 (left anterior cerebral) to 366 (anterior communicating). The other sites get the geometric mean of these two.
"""


def checkpoint_digest(path: Path) -> str:
    """
    Return the SHA-256 of a checkpoint's bytes.

    Raises
    ------
    UsageError
        It can't be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise UsageError(f"there is no checkpoint {path}") from error
    except OSError as error:
        raise UsageError(f"the checkpoint {path} can't be read: {error.strerror}") from error


@dataclass(frozen=True)
class Calibration:
    """
    One temperature a label, and what they are for.

    Attributes
    ----------
    key
        Of the file's content: 12 hexadecimal digits.
    temperatures
        (14,): logits are divided by them; 1 for a label that has none.
    runs
        Names of the runs it was fitted to, and the digests of their checkpoints (None: there was no checkpoint).
    averaged
        Fitted to the average of several runs' predictions, and not to each run's own series.
    """

    path: Path
    key: str
    temperatures: tuple[float, ...]
    runs: tuple[tuple[str, str | None], ...]
    averaged: bool

    def calibrated(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (14,) calibrated from (14,) a series' probabilities, as the evaluation does that fitted them."""
        return apply_temperature(probabilities, self.temperatures)

    def check(self, checkpoints: Sequence[Path]) -> None:
        """
        Make sure that it is one of these checkpoints'.

        Raises
        ------
        UsageError
            It was fitted to others, or to the average of more than these.
        """
        names = ", ".join(name for name, _ in self.runs)
        if lacking := [name for name, digest in self.runs if digest is None]:
            raise UsageError(
                f"{self.path} does not say which checkpoint it was fitted to: {lacking[0]} had no "
                "checkpoints/best.ckpt when it was evaluated"
            )
        fitted = {digest for _, digest in self.runs}
        by_digest = {checkpoint_digest(path): path for path in checkpoints}
        if strange := [path for digest, path in by_digest.items() if digest not in fitted]:
            raise UsageError(
                f"{self.path} was fitted to the best checkpoint of {names}, which {strange[0]} is not, or no longer. "
                "Evaluate again, or go without (--no-calibration)"
            )
        if self.averaged and fitted - by_digest.keys():
            raise UsageError(
                f"{self.path} was fitted to the average of {names}: name all {len(fitted)} checkpoints, "
                f"not {len(by_digest)}"
            )


@dataclass(frozen=True)
class Adjustment:
    """
    What is done to a series' probabilities; nothing, as it stands.

    Attributes
    ----------
    calibration
        Temperatures.
    gate
        alpha: the probability of each site is multiplied by that of "Aneurysm Present" to the power of alpha. At 0
        nothing changes; at 1 a site is as probable as it is *and* there is an aneurysm, were the two independent.

    Raises
    ------
    UsageError
        ``gate`` is negative or not finite.
    """

    calibration: Calibration | None = None
    gate: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.gate) and self.gate >= 0):
            raise UsageError(f"the gate is {self.gate:g}: give 0 (off) or more")

    def __call__(self, probabilities: NDArray[np.float64]) -> list[float]:
        """Return the 14 probabilities of the answer from (14,) a model's."""
        adjusted = probabilities.astype(np.float64)
        if self.calibration is not None:
            adjusted = self.calibration.calibrated(adjusted)
        adjusted[: len(SITES)] *= adjusted[len(SITES)] ** self.gate
        values: list[float] = adjusted.tolist()
        return values


def read_calibration(path: str | Path) -> Calibration:
    """
    Read a calibration.json, or that of a report's folder.

    Raises
    ------
    UsageError
        There is none, it is damaged, of other labels or of an older version, or it holds no temperature.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    try:
        text = read_bounded(path, MOST_JSON)
        content = parse_json(text)
        if content["format_version"] != CALIBRATION_FORMAT:
            raise UsageError(
                f"{path} is of format version {content['format_version']}, not {CALIBRATION_FORMAT}: evaluate again"
            )
        if set(content["labels"]) != set(LABELS):
            strange = sorted(set(content["labels"]) ^ set(LABELS))
            raise UsageError(f"{path} is of other labels: {', '.join(strange[:3])}")
        temperatures = [content["labels"][name]["temperature"] for name in LABELS]
        runs = tuple((str(run["name"]), run["checkpoint"]) for run in content["runs"])
        averaged = bool(content["averaged"])
        valid = all(t is None or (math.isfinite(t) and t > 0) for t in temperatures)
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"the calibration {path} can't be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path} is no calibration of `aneurysm evaluate`, or damaged ({type(error).__name__} {error})"
        ) from error
    if not valid:
        raise UsageError(f"{path} is damaged: a temperature is not a number above 0")
    if not any(temperatures):
        raise UsageError(
            f"{path} holds no temperature: too few series, or the means of ranks, which can't be calibrated"
        )
    key = hashlib.sha256(text).hexdigest()[:12]
    return Calibration(path, key, tuple(1.0 if t is None else float(t) for t in temperatures), runs, averaged)


def find_calibration(checkpoint: Path) -> Path | None:
    """Return the path of the calibration in the report of the run whose best checkpoint this is; None without one."""
    if checkpoint.name != "best.ckpt" or checkpoint.parent.name != "checkpoints":
        return None
    path = checkpoint.parent.parent / _REPORT / FILE_NAME
    return path if path.is_file() else None


def own_calibration(checkpoint: Path) -> Calibration | None:
    """
    Return the calibration that lies with the run of a checkpoint, if it was fitted to that run alone.

    Raises
    ------
    UsageError
        There is one, but it is of an older checkpoint, of several runs, or can't be used.
    """
    path = find_calibration(checkpoint)
    if path is None:
        return None
    calibration = read_calibration(path)
    calibration.check([checkpoint])
    if len(calibration.runs) > 1:
        raise UsageError(
            f"{path} was fitted to {len(calibration.runs)} runs together; --calibration takes it nevertheless"
        )
    return calibration


def base_rates(checkpoints: Sequence[str | Path]) -> dict[str, float]:
    """
    Return for each label the share of positives in the series that the models were trained on: the checkpoints' mean.

    Raises
    ------
    UsageError
        A checkpoint does not know them, or can't be read.
    """
    from aneurysm.training.checkpoint import load_checkpoint  # loads torch, which reports do without

    rates = []
    for path in checkpoints:
        known = load_checkpoint(path).prevalence
        if known is None:
            raise UsageError(
                f"{path} was written by an older version, which did not keep how frequent the labels are: "
                "there is nothing to fall back on"
            )
        values = [value for value in known if value is not None]
        if len(values) < len(LABELS):
            raise UsageError(
                f"{path}: {LABELS[known.index(None)]} was not known of any series that it was trained on: "
                "there is nothing to fall back on"
            )
        rates.append(values)
    return {label: sum(values) / len(rates) for label, values in zip(LABELS, zip(*rates, strict=True), strict=True)}


def fallback_rates(checkpoints: Sequence[str | Path]) -> list[float]:
    """Return how frequent each label was in training, or `PUBLISHED_RATES` if the checkpoints don't know."""
    try:
        return list(base_rates(checkpoints).values())
    except UsageError:
        return list(PUBLISHED_RATES)
