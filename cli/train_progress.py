"""How a training run shows itself: what it trains on, how far it is, and a table for each epoch."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Final, Self

from rich import box
from rich.console import Console
from rich.table import Table

from aneurysm.cli.progress import Clock, Display, series_share, series_text
from aneurysm.metrics import Score
from aneurysm.training.metrics_table import EpochRow
from aneurysm.training.progress import RunFacts, StepFacts

_LINE_EVERY_S: Final = 30.0


class TrainProgress(Display):
    """Tells of a run; warnings of the package are shown among it."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__("train", console, every_s=_LINE_EVERY_S)
        self._facts: RunFacts | None = None
        self._training: Clock | None = None
        self._validation: Clock | None = None
        self._warnings = _Warnings(self)

    def __enter__(self) -> Self:
        logging.getLogger("aneurysm").addHandler(self._warnings)
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger("aneurysm").removeHandler(self._warnings)
        super().__exit__(kind, error, trace)

    def started(self, facts: RunFacts) -> None:
        """Say what is trained on what, where."""
        self._facts = facts
        limit = f"         {facts.limit}\n" if facts.limit else ""
        again = f", from epoch {facts.first_epoch + 1} on" if facts.first_epoch else ""
        self.say(
            f"run      {facts.folder}\n"
            f"model    {facts.model} on {facts.device}\n"
            f"series   {facts.train[0]} to train on ({facts.train[1]} with aneurysm), {facts.val[0]} held out "
            f"({facts.val[1]} with aneurysm)\n"
            f"{limit}"
            f"samples  {facts.samples}, {facts.batch_size} per step, {facts.steps_per_epoch} steps per epoch, "
            f"{facts.epochs} epochs{again}\n"
            "Ctrl-C saves and stops; --resume goes on."
        )
        self.show("waiting for the first batch", clock=Clock())

    def step(self, facts: StepFacts) -> None:
        """Show a step."""
        assert self._facts is not None
        self._validation = None
        first, self._training = self._training is None, self._training or Clock()
        per_epoch, epochs = self._facts.steps_per_epoch, self._facts.epochs
        loss = "-" if facts.loss is None else f"{facts.loss:.4f}"
        memory = "" if facts.gpu_gb is None else f", {facts.gpu_gb:.1f} GB"
        self.show(
            f"step {facts.step}/{per_epoch}, loss {loss}, {facts.patches_per_s:.1f} patches/s, "
            f"waited for data {facts.idle_share:.0%}{memory}",
            # Of the whole run, whose clock does not stop in validation: what is left holds as much of it.
            ((facts.epoch - 1) * per_epoch + facts.step) / (epochs * per_epoch),
            clock=self._training,
            name=f"epoch {facts.epoch}/{epochs}",
        )
        if first:
            self.line()

    def validating(self, done: int, total: int, window: int, windows: int) -> None:
        """Show how far validation is."""
        self._validation = self._validation or Clock()
        counts = (done, total, window, windows)
        self.show(series_text(*counts), series_share(*counts), clock=self._validation, name="validation")

    def epoch(self, row: EpochRow, score: Score | None, *, best: bool) -> None:
        """Print the table of an epoch."""
        seconds = sum(float(row.get(name) or 0.0) for name in ("train_s", "val_s"))
        mark = ", the best so far" if best else ""
        self.say(f"epoch {row['epoch']}: loss {row['loss']:.4f}, {seconds:.0f} s{mark}")
        if score is None:
            return
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("held out", "series", "positive", "score", "AUC present", "mean AUC of sites", "of sites"):
            table.add_column(column, justify="left" if column == "held out" else "right")
        several = score.by_modality if len(score.by_modality) > 1 else {}
        for name, part in {"all": score, **several}.items():
            present, sites = part.labels[-1], sum(s.auc is not None for s in part.labels[:-1])
            values = (_text(v) for v in (part.score, part.present_auc, part.mean_site_auc))
            table.add_row(name, str(present.n), str(present.n_positive), *values, f"{sites}/{len(part.labels) - 1}")
        self.console.print(table)


class _Warnings(logging.Handler):
    def __init__(self, display: Display) -> None:
        super().__init__(logging.WARNING)
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        """Print a warning."""
        self._display.say(record.getMessage())


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
