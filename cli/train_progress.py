"""How a training run shows itself: a live bar and a table per epoch on a terminal, plain lines where there is none."""

from __future__ import annotations

import logging
import time
from types import TracebackType
from typing import Final, Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from aneurysm.training.metrics_table import Row
from aneurysm.training.progress import RunFacts, StepFacts
from aneurysm.training.score import Score

_LINE_EVERY_S: Final = 30.0
_SHOW_EVERY_S: Final = 0.2


class TrainProgress:
    """Tells of a run on stderr; warnings of the package go there, too."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._facts: RunFacts | None = None
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._shown = self._told = self._started = time.monotonic()
        self._first_step: int | None = None
        self._warnings = _Warnings(self._print)

    def __enter__(self) -> Self:
        logging.getLogger("aneurysm").addHandler(self._warnings)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away, and listen no more."""
        logging.getLogger("aneurysm").removeHandler(self._warnings)
        if self._bar:
            self._bar.stop()
            self._bar = None

    def started(self, facts: RunFacts) -> None:
        """Say what is trained on what, where."""
        self._facts = facts
        patch = " x ".join(map(str, facts.patch))
        again = f", from epoch {facts.first_epoch + 1} on" if facts.first_epoch else ""
        self._print(
            f"run      {facts.folder}\n"
            f"model    {facts.model} on {facts.device}\n"
            f"series   {facts.train[0]} to train on ({facts.train[1]} with aneurysm), {facts.val[0]} held out "
            f"({facts.val[1]} with aneurysm)\n"
            f"patches  {patch} voxels, {facts.batch_size} per step, {facts.steps_per_epoch} steps per epoch, "
            f"{facts.epochs} epochs{again}\n"
            "Ctrl-C saves and stops; --resume goes on."
        )
        if self._console.is_terminal:
            self._bar = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"),
                                 console=self._console)  # fmt: skip
            self._task = self._bar.add_task("train", total=facts.steps_per_epoch, told="")
            self._bar.start()

    def step(self, facts: StepFacts) -> None:
        """Show a step, a few times a second."""
        assert self._facts is not None
        done = (facts.epoch - 1) * self._facts.steps_per_epoch + facts.step
        now = time.monotonic()
        if self._first_step is None:
            self._first_step, self._started = done, now
        if now - self._shown < _SHOW_EVERY_S:
            return
        self._shown = now
        if self._bar and self._task is not None:
            self._bar.update(
                self._task,
                description=f"epoch {facts.epoch}/{self._facts.epochs}",
                completed=facts.step,
                total=self._facts.steps_per_epoch,
                told=self._line(facts, done, now),
            )
        elif now - self._told > _LINE_EVERY_S:
            self._told = now
            self._print(f"epoch {facts.epoch}/{self._facts.epochs}, {self._line(facts, done, now)}")

    def validating(self, done: int, total: int) -> None:
        """Show how far validation is."""
        if self._bar and self._task is not None:
            self._bar.update(self._task, description="validation", completed=done, total=total, told=f"{done}/{total}")

    def epoch(self, row: Row, score: Score | None, *, best: bool) -> None:
        """Print the table of an epoch."""
        seconds = sum(float(row.get(name) or 0.0) for name in ("train_s", "val_s"))
        mark = ", the best so far" if best else ""
        self._print(f"epoch {row['epoch']}: loss {row['loss']:.4f}, {seconds:.0f} s{mark}")
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
        self._console.print(table)

    def _line(self, facts: StepFacts, done: int, now: float) -> str:
        assert self._facts is not None
        loss = "-" if facts.loss is None else f"{facts.loss:.4f}"
        memory = "" if facts.gpu_gb is None else f", {facts.gpu_gb:.1f} GB"
        steps = done - (self._first_step or 0)
        all_steps = self._facts.epochs * self._facts.steps_per_epoch
        # Over the time since the start, validation included: what is left holds as much of it.
        left = f", {_duration((now - self._started) / steps * (all_steps - done))} left" if steps else ""
        return (
            f"step {facts.step}/{self._facts.steps_per_epoch}, loss {loss}, {facts.patches_per_s:.1f} patches/s, "
            f"waited for data {facts.idle_share:.0%}{memory}{left}"
        )

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class _Warnings(logging.Handler):
    def __init__(self, show: object) -> None:
        super().__init__(logging.WARNING)
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        """Print a warning."""
        assert callable(self._show)
        self._show(record.getMessage())


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
