"""What `aneurysm predict` shows and writes of its answers, as they come."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import typer

from aneurysm.cli.progress import Display, series_share, series_text
from aneurysm.labels import LABELS

if TYPE_CHECKING:
    from aneurysm.inference.output_table import OutputTable
    from aneurysm.inference.overlays import Overlays
    from aneurysm.inference.prediction import LocatedCandidate, Prediction
    from aneurysm.inference.read_series import Failure

_EVERY_S: Final = 10.0


class PredictProgress(Display):
    """Shows predictions as they come: series, windows of the one in work, time left; and of series without any."""

    def __init__(self, total: int) -> None:
        super().__init__("predict")
        self._done, self._total = 0, total

    def windows(self, window: int, windows: int) -> None:
        """Show that ``window`` of ``windows`` windows are done of the series in work."""
        counts = (self._done, self._total, window, windows)
        self.show(series_text(*counts), series_share(*counts))

    def follow(self, answers: Iterator[Prediction | Failure]) -> Iterator[Prediction | Failure]:
        """Pass answers on, and count them; name those without a prediction."""
        from aneurysm.inference.read_series import Failure

        self.windows(0, 0)
        for answer in answers:
            if isinstance(answer, Failure):
                self.say(f"{answer.status} {answer.series_uid}: {answer.reason}: {answer.detail}")
            self._done += 1
            self.windows(0, 0)
            yield answer


def laid_over(answers: Iterator[Prediction | Failure], overlays: Overlays) -> Iterator[Prediction | Failure]:
    """Pass answers on once their maps are written, without them: they are as large as a volume."""
    from aneurysm.inference.prediction import Prediction

    for answer in answers:
        if isinstance(answer, Prediction) and answer.lesion_map is not None:
            overlays.write(answer.series_uid, answer.lesion_map)
            yield replace(answer, lesion_map=None)
        else:
            yield answer


def fill_table(table: OutputTable, answers: Iterator[Prediction | Failure]) -> None:
    """Put answers into a table as they come, and write it now and then, and at the end."""
    written = time.monotonic()
    try:
        for answer in answers:
            table.add(answer)
            if time.monotonic() - written > _EVERY_S:
                table.write()
                written = time.monotonic()
    except KeyboardInterrupt:
        typer.echo(f"aneurysm: interrupted. The same command resumes {table.path}.", err=True)
        raise
    finally:
        table.write()


def print_answer(answer: Prediction | Failure) -> bool:
    """Write an answer for people to read; return True if it is none."""
    from aneurysm.inference.read_series import Failure

    bad = isinstance(answer, Failure)
    if answer.probabilities is None:
        return bad
    typer.echo(f"{answer.series_uid}: no answer, but base rates" if bad else answer.series_uid)
    for label, probability in sorted(answer.probabilities.items(), key=lambda item: (item[0] != LABELS[13], -item[1])):
        typer.echo(f"  {probability:6.1%}  {label}")
    if isinstance(answer, Failure):
        return True
    for candidate in answer.candidates:
        typer.echo(f"  {candidate.probability:6.1%}  {candidate.site} at {_place(candidate)}")
    return False


def _place(candidate: LocatedCandidate) -> str:
    lps = ", ".join(f"{v:.1f}" for v in candidate.lps_mm)
    source = candidate.source
    if source is None:
        return f"LPS ({lps}) mm"
    frame = "" if source.frame is None else f", frame {source.frame}"
    place = f"column {source.column:.1f}, row {source.row:.1f} (counted from 0)"
    return f"LPS ({lps}) mm: image {source.sop_uid}{frame}, {place}"
