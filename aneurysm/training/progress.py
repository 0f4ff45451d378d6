"""What a run tells whoever started it: the protocol, and the silent kind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from aneurysm.metrics import Score
from aneurysm.training.metrics_table import EpochRow


@dataclass(frozen=True)
class RunFacts:
    """
    What is known before the first step.

    Attributes
    ----------
    device
        In words.
    model
        Its name, and millions of parameters.
    train, val
        Series, and how many have an aneurysm.
    limit
        See `aneurysm.training.split.Split`.
    first_epoch
        From 0; above it if the run is resumed.
    """

    folder: Path
    device: str
    model: str
    train: tuple[int, int]
    val: tuple[int, int]
    limit: str
    samples: str
    batch_size: int
    epochs: int
    steps_per_epoch: int
    first_epoch: int


@dataclass(frozen=True)
class StepFacts:
    """
    What is known after a step.

    Attributes
    ----------
    epoch, step
        From 1.
    loss
        Of the steps that were read last; None before the first reading.
    idle_share
        Share of the time that the device waited for data.
    gpu_gb
        Most memory that was in use; None without a GPU.
    """

    epoch: int
    step: int
    loss: float | None
    patches_per_s: float
    idle_share: float
    gpu_gb: float | None


class TrainingProgress(Protocol):
    """Told of a run as it goes; its methods return at once."""

    def started(self, facts: RunFacts) -> None:
        """Take note that training begins."""

    def step(self, facts: StepFacts) -> None:
        """Take note of a step."""

    def validating(self, done: int, total: int, window: int, windows: int) -> None:
        """
        Take note that ``done`` of ``total`` held-out series are predicted, of this process's part.

        Of the next one ``window`` of ``windows`` windows are; 0 of 0 before the first.
        """

    def epoch(self, row: EpochRow, score: Score | None, *, best: bool) -> None:
        """Take note of the row that goes into metrics.csv, and of the score, if the epoch was validated."""


class Silent:
    """A `TrainingProgress` that shows nothing."""

    def started(self, facts: RunFacts) -> None:
        """Show nothing."""

    def step(self, facts: StepFacts) -> None:
        """Show nothing."""

    def validating(self, done: int, total: int, window: int, windows: int) -> None:
        """Show nothing."""

    def epoch(self, row: EpochRow, score: Score | None, *, best: bool) -> None:
        """Show nothing."""
