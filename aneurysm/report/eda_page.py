"""Exploration -> a folder with eda.html, which needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from aneurysm._version import __version__
from aneurysm.errors import NoSpaceError, UsageError
from aneurysm.labels import LABELS, SITES
from aneurysm.processes.files import is_disk_full, write_atomically
from aneurysm.report.eda import Exploration, ExploredSeries
from aneurysm.report.eda_ages import SEXES
from aneurysm.report.eda_geometry import MEASURES, PLANES, Measure, Spread, matrix_counts, measured, spread
from aneurysm.report.eda_labels import MOST_POINTS, co_occurrence, prevalence
from aneurysm.report.eda_plots import age_plot, histogram
from aneurysm.report.eda_samples import draw_sample
from aneurysm.report.intervals import FEWEST, Estimate
from aneurysm.report.page_template import page_template
from aneurysm.report.plot_style import SHORT, Plot, inline_svg, svg_text
from aneurysm.report.syntax_names import syntax_name
from aneurysm.sizes import size_text

PAGE_NAME: Final = "eda.html"
_REASONS_SHOWN: Final = 240
"""Characters of the detail of a rejection."""
_DEEPEST: Final = 50
"""Per cent of the full colour: text has to be read on it, light or dark."""
_STRONGEST: Final = 3.0
"""A phi of 1 / 3 has the full colour: sites hardly ever go together more closely."""


@dataclass(frozen=True)
class _Picture:
    uid: str
    title: str
    caption: str
    jpeg: str
    problem: str


@dataclass(frozen=True)
class _Rejection:
    """A reason, how many series have it by their headers and in the cache, and one of them."""

    reason: str
    by_headers: int
    in_cache: int
    uid: str
    detail: str


def write_eda_page(exploration: Exploration, out: str | Path) -> Path:
    """
    Write eda.html into the folder ``out``; one that is there is replaced.

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    UsageError
        The folder can't be written.
    NoSpaceError
        The disk is full.
    """
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / PAGE_NAME, render_exploration(exploration))
    except OSError as error:
        if is_disk_full(error):
            raise NoSpaceError(f"the disk of {out} is full: there is no page") from error
        raise UsageError(f"the page can't be written to {out}: {error.strerror or error}") from error
    return out / PAGE_NAME


def render_exploration(exploration: Exploration) -> str:
    """Return the page: one file without scripts, that asks for nothing."""
    e = exploration
    filters: dict[str, Callable[..., str]] = {
        "bytes": size_text,
        "count": lambda number, digits=0: f"{number:,.{digits}f}",
        "percent": lambda share: f"{share:.1%}",
        "interval": _interval,
    }
    facts = [s.facts for s in e.series]
    fit = [s.facts for s in e.fit]
    columns: list[str | None] = [*e.modalities, None] if len(e.modalities) > 1 else [None]
    labelled = [m for m in columns if m is None or (e.labelled.modalities == m).any()]
    return page_template("eda.html", filters).render(
        e=e,
        version=__version__,
        notice="",
        fewest=FEWEST,
        n_files=sum(f.files for f in facts),
        n_bytes=sum(f.bytes for f in facts),
        columns=columns,
        modality_rows=[_modality_row(e, m) for m in columns],
        labels=LABELS,
        labelled=labelled,
        prevalence=[prevalence(e.labelled, m) for m in labelled] if len(e.labelled) else [],
        present=len(LABELS) - 1,
        sexes=SEXES,
        age_figure=_figure(None if e.ages is None else age_plot(e.ages)),
        sites=_site_rows(e),
        short=SHORT[: len(SITES)],
        most_points=MOST_POINTS,
        planes=[(plane, [sum(s.facts.plane == plane for s in _of(e.fit, m)) for m in columns]) for plane in PLANES],
        fit_counts=[len(_of(e.fit, m)) for m in columns],
        spreads=[row for measure in MEASURES for row in _spread_rows(e, measure, columns)],
        figures=[figure for measure in MEASURES if measure.plotted and (figure := _histogram(e, measure))],
        matrices=matrix_counts(fit),
        syntaxes=_syntax_rows(e, columns),
        n_with_images=sum(bool(f.syntaxes) for f in facts),
        rejections=_rejections(e),
        pictures=[(m, [_picture(s) for s in e.samples if s.modality == m]) for m in e.modalities],
    )


def _of(series: Sequence[ExploredSeries], modality: str | None) -> list[ExploredSeries]:
    return [s for s in series if modality in (None, s.modality)]


def _modality_row(e: Exploration, modality: str | None) -> dict[str, Any]:
    """Return what the series of a modality, or all, are."""
    series = e.of(modality)
    files = np.array([s.facts.files for s in series])
    return {
        "name": modality or "All",
        "series": len(series),
        "patients": len({s.patient for s in series}),
        "from_table": sum(bool(s.notes.modality) for s in series),
        "files": int(files.sum()),
        "files_median": float(np.median(files)),
        "files_most": int(files.max()),
        "bytes": sum(s.facts.bytes for s in series),
        "rejected": sum(bool(s.facts.reason) for s in series),
    }


def _site_rows(e: Exploration) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the lower half of the table of sites, row by row, with its diagonal."""
    if not len(e.labelled):
        return []
    found = co_occurrence(e.labelled.labels)
    rows = []
    for i, site in enumerate(SITES):
        cells = []
        for j in range(i + 1):
            phi = float(found.phi[i, j])
            strength = 0.0 if i == j or np.isnan(phi) else min(1.0, _STRONGEST * abs(phi))
            cells.append(
                {
                    "count": int(found.counts[i, j]),
                    "phi": "" if i == j else "n/a" if np.isnan(phi) else f"{phi:.2f}".replace("-", "\N{MINUS SIGN}"),
                    "strength": round(_DEEPEST * strength),
                    "negative": phi < 0,
                }
            )
        rows.append((site, cells))
    return rows


def _spread_rows(e: Exploration, measure: Measure, columns: list[str | None]) -> list[tuple[str, str, Spread, int]]:
    """Return title, modality, spread and digits of a measure, for each modality that has values."""
    rows = []
    for modality in columns:
        own = spread(measured(measure, (s.facts for s in _of(e.fit, modality))))
        if own is not None:
            title = f"{measure.title}, {measure.unit}" if measure.unit else measure.title
            rows.append((title, modality or "All", own, measure.digits))
    return rows


def _histogram(e: Exploration, measure: Measure) -> dict[str, str] | None:
    return _figure(histogram(measure, {m: measured(measure, (s.facts for s in _of(e.fit, m))) for m in e.modalities}))


def _figure(plot: Plot | None) -> dict[str, str] | None:
    if plot is None:
        return None
    return {"title": plot.title, "caption": plot.caption, "svg": inline_svg(svg_text(plot), plot.name, plot.title)}


def _syntax_rows(e: Exploration, columns: list[str | None]) -> list[tuple[str, list[int]]]:
    """Return transfer syntaxes, the commonest first, with the series that have them, by modality and in all."""
    names = sorted({",".join(s.facts.syntaxes) for s in e.series} - {""})
    rows = [
        (syntax_name(name), [sum(",".join(s.facts.syntaxes) == name for s in e.of(m)) for m in columns])
        for name in names
    ]
    return sorted(rows, key=lambda row: (-row[1][-1], row[0]))


def _rejections(e: Exploration) -> list[_Rejection]:
    by_headers, in_cache = e.rejections, {} if e.records is None else e.records.reasons
    rows = []
    for reason in {**by_headers, **in_cache}:
        _, uid, detail = by_headers.get(reason) or in_cache[reason]
        short = detail if len(detail) <= _REASONS_SHOWN else f"{detail[:_REASONS_SHOWN]} ..."
        counts = [found[reason][0] if reason in found else 0 for found in (by_headers, in_cache)]
        rows.append(_Rejection(reason, counts[0], counts[1], uid, short))
    return sorted(rows, key=lambda row: (-max(row.by_headers, row.in_cache), row.reason))


def _picture(sample: Any) -> _Picture:
    """Return a sample as the page shows it."""
    image = sample.image
    if image is None:
        return _Picture(sample.uid, sample.modality, "", "", sample.problem)
    place = f"slice {image.number} of {image.slices}" if image.number else "an image beside the stack"
    sites = ", ".join(site for site, _, _ in image.points)
    data = base64.b64encode(draw_sample(image)).decode("ascii")
    return _Picture(
        sample.uid, f"{sample.modality}: {sites or 'no point is marked'}", f"{sites or 'No point is marked'}; {place}",
        f"data:image/jpeg;base64,{data}", "",
    )  # fmt: skip


def _interval(share: Estimate) -> str:
    if share.low is None or share.high is None:
        return "no interval"
    return f"{share.low:.1%}\N{EN DASH}{share.high:.1%}"
