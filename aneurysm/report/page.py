"""Evaluation -> a folder: report.html, which needs nothing else, beside tables and plots."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aneurysm._version import __version__
from aneurysm.errors import NoSpaceError, UsageError
from aneurysm.labels import LABELS
from aneurysm.processes.files import is_disk_full, write_atomically
from aneurysm.report.evaluation import Evaluation
from aneurysm.report.froc import BY_GROUP_RATE, RATES
from aneurysm.report.gallery import CASE_KINDS, FIELD_MM, SLAB_MM, Case, draw_gallery
from aneurysm.report.intervals import FEWEST, Estimate
from aneurysm.report.page_template import page_template
from aneurysm.report.plot_style import inline_svg, save
from aneurysm.report.plots import draw_plots
from aneurysm.report.ranking import PRESENT
from aneurysm.report.results import NOTICE, calibration_json, metrics_json, metrics_table, per_label_csv


@dataclass(frozen=True)
class _Drawn:
    name: str
    title: str
    caption: str
    svg: str
    wide: bool


def write_report(evaluation: Evaluation, out: str | Path, *, cases: int = 4) -> Path:
    """
    Write report.html, metrics.json, per_label.csv, calibration.json and plots/ into ``out``; what is there is replaced.

    Parameters
    ----------
    cases
        How many series of each kind the gallery shows.

    Returns
    -------
    Path
        Of report.html.

    Raises
    ------
    UsageError
        The folder can't be written.
    NoSpaceError
        The disk is full.
    """
    out = Path(out)
    try:
        (out / "plots").mkdir(parents=True, exist_ok=True)
        drawn = []
        for plot in draw_plots(evaluation):
            svg = save(plot, out / "plots")
            drawn.append(_Drawn(plot.name, plot.title, plot.caption, inline_svg(svg, plot.name, plot.title), plot.wide))
        write_atomically(out / "metrics.json", metrics_json(evaluation))
        write_atomically(out / "per_label.csv", per_label_csv(evaluation))
        write_atomically(out / "calibration.json", calibration_json(evaluation))
        write_atomically(out / "report.html", render(evaluation, drawn, draw_gallery(evaluation, cases)))
    except OSError as error:
        if is_disk_full(error):
            raise NoSpaceError(f"the disk of {out} is full: the report is not complete") from error
        raise UsageError(f"the report can't be written to {out}: {error.strerror}") from error
    return out / "report.html"


def render(evaluation: Evaluation, plots: list[_Drawn], gallery: dict[str, list[Case]]) -> str:
    """Return the page: one file without scripts, that asks for nothing."""
    filters: dict[str, Callable[..., str]] = {
        "number": _number,
        "interval": _interval,
        "percent": _percent,
        "jpeg": _data_url,
    }
    p = evaluation.predictions
    counts = [
        (str(m), int((p.modalities == m).sum()), int(((p.modalities == m) & p.positive(PRESENT)).sum()))
        for m in np.unique(p.modalities)
    ]
    return page_template("report.html", filters).render(
        e=evaluation,
        metrics=metrics_table(evaluation),
        notice=NOTICE,
        version=__version__,
        labels=LABELS,
        present=LABELS[PRESENT],
        modalities=counts,
        plots=plots,
        gallery=gallery,
        kinds=CASE_KINDS,
        slab_mm=SLAB_MM,
        field_mm=FIELD_MM,
        rates=RATES,
        by_group_rate=BY_GROUP_RATE,
        fewest=FEWEST,
        models=_models(evaluation),
    )


def _models(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return what the configuration of each run says, as far as it does."""
    rows = []
    for result in evaluation.runs:
        config = result.run.config
        losses = config.get("losses")
        rows.append(
            {
                "result": result,
                "model": config.get("model", "not known"),
                "sees": _sees(config),
                "losses": ", ".join(f"{k} {v:g}" for k, v in losses.items())
                if isinstance(losses, dict)
                else "not known",
                "folds": ", ".join(map(str, sorted({int(f) for f in result.run.predictions.folds}))),
            }
        )
    return rows


def _sees(config: Mapping[str, Any]) -> str:
    """Return what a model sees, in words, as its configuration says."""
    view, patch = config.get("view"), config.get("patch")
    if isinstance(view, dict) and view.get("name") != "patch3d":
        settings = ", ".join(f"{key} {value}" for key, value in view.items() if key != "name")
        return f"{view.get('name')}: {settings}"
    return " x ".join(map(str, patch)) if isinstance(patch, list) else "not known"


def _number(value: float | None, digits: int = 3) -> str:
    return "\N{EN DASH}" if value is None else f"{value:.{digits}f}"


def _interval(value: Estimate, digits: int = 3) -> str:
    if value.low is None or value.high is None:
        return ""
    return f"{value.low:.{digits}f}\N{EN DASH}{value.high:.{digits}f}"


def _percent(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else f"{value:.1%}"


def _data_url(picture: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(picture).decode("ascii")
