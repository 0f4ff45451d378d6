"""aneurysm evaluate: runs, or tables of predictions -> metrics, plots and a page."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from aneurysm.cli.options import LocalCache, LocalCacheGb
from aneurysm.cli.progress import Display, series_share, series_text
from aneurysm.cli.values import number, parse_fold, whole
from aneurysm.errors import UsageError

if TYPE_CHECKING:
    from aneurysm.report.evaluation import EvaluateOptions
    from aneurysm.report.run import Run


class EnsembleName(StrEnum):
    """How runs of the same series are averaged."""

    LOGITS = "logits"
    RANKS = "ranks"


def evaluate(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN|TABLE...",
            help="Folders that `aneurysm train` wrote, of one fold or all; or, with --labels, tables of `aneurysm "
            "predict --out`.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the report.", show_default="RUN/evaluation, of one folder"),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|URL", envvar="ANEURYSM_CACHE", help="The runs' cache.", show_default="where the runs say"
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The truth about series in tables: a table as train.csv.", show_default=False
        ),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Table with the lesions' radii: the phantom's truth.csv.", show_default=False
        ),
    ] = None,
    ensemble: Annotated[
        EnsembleName, typer.Option(metavar="logits|ranks", help="Mean of what, for runs of the same series.")
    ] = EnsembleName.LOGITS,
    precision: Annotated[
        float,
        typer.Option(
            metavar="X", parser=number(0, 1, above=True), help="Precision that the threshold of present has to reach."
        ),
    ] = 0.80,
    match_radius: Annotated[
        float,
        typer.Option(
            metavar="MM", parser=number(0, above=True), help="How far a candidate may lie from a lesion, in mm."
        ),
    ] = 5.0,
    samples: Annotated[int, typer.Option(metavar="N", parser=whole(40, 10_000), help="Bootstrap samples.")] = 1000,
    seed: Annotated[
        int, typer.Option(metavar="N", parser=whole(0), help="Of the samples and of the patients' halves.")
    ] = 0,
    cases: Annotated[int, typer.Option(metavar="N", parser=whole(0), help="Series of each kind in the gallery.")] = 4,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Predict again with the best checkpoints, from --cache or the run's own.")
    ] = False,
    fold: Annotated[
        Any,  # Typer knows no unions
        typer.Option(
            metavar="K|all",
            parser=parse_fold,
            help="With --fresh: a fold that the run held out, or all of a cache that it has never seen.",
            show_default="the fold that picked the best epoch",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="With --fresh: cpu, cuda or cuda:1; auto takes a GPU.")
    ] = "auto",
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="With --fresh: the architecture, if it is your own.",
            show_default="as the checkpoint says",
        ),
    ] = None,
    local_cache: LocalCache = None,
    local_cache_gb: LocalCacheGb = None,
) -> None:
    """
    Evaluate the held-out predictions of runs: scores with intervals, calibration, localisation, plots, one page.

    Runs of different folds are put together; runs of the same fold are averaged and compared. --fresh predicts the
    held-out series again, or with --fold all those of another cache. Not for clinical use.
    """
    from aneurysm.report.evaluate import evaluate as evaluated
    from aneurysm.report.evaluation import EvaluateOptions
    from aneurysm.report.results import NOTICE

    if fold is not None and not fresh:
        raise UsageError("--fold goes with --fresh: without it, what the runs predicted in training is evaluated")
    tables = [path for path in runs if path.suffix in (".csv", ".json") and not path.is_dir()]
    if tables and (labels is None or fresh or len(tables) < len(runs)):
        raise UsageError(
            f"{tables[0]} is a table of predictions: give the truth with --labels, and neither runs nor --fresh with it"
        )
    if labels is not None and not tables:
        raise UsageError("--labels goes with tables of `aneurysm predict --out`: runs have their own")
    if tables and out is None:
        raise UsageError("name the report's folder with --out")
    if out is None and len(runs) > 1:
        raise UsageError("name the report's folder with --out: RUN/evaluation is for the report of one run alone")
    place = runs[0]
    runs = [run for path in runs for run in _runs_at(path)]
    options = EvaluateOptions(
        cache=cache,
        local_cache=local_cache,
        local_cache_gb=local_cache_gb,
        truth=truth,
        ensemble=ensemble.value,
        target_precision=precision,
        match_radius_mm=match_radius,
        samples=samples,
        seed=seed,
    )
    out = out or place / ("evaluation-fresh" if fresh else "evaluation")
    evaluation = evaluated(
        _with_labels(runs, labels)
        if labels is not None
        else _predicted(runs, out, options, fold, device, model)
        if fresh
        else runs,
        options=options,
    )
    page = evaluation.write_report(out, cases=cases)
    ranking = evaluation.ranking
    typer.echo(f"{ranking.n} {evaluation.series} of {ranking.n_patients} patients, {len(runs)} runs")
    typer.echo(f"score        {ranking.score}")
    typer.echo(f"AUC, present {ranking.present_auc}")
    typer.echo(f"AUC, sites   {ranking.site_auc}")
    for result in evaluation.runs:
        if result.run.remark:
            typer.echo(f"{result.run.name}: {result.run.remark}")
    if evaluation.froc is not None:
        typer.echo(f"lesions found at 1 false positive a scan: {evaluation.froc.at[1.0]}")
    if ranking.left_out:
        names = ", ".join(f"{x.label} ({x.n_positive} of {x.n} positive)" for x in ranking.left_out)
        typer.echo(f"left out, because all that is known is of one class: {names}")
    typer.echo(f"Read {page}. {NOTICE}.")


def _runs_at(path: Path) -> list[Path]:
    """Return the runs of all folds that are in a folder of such; of another path, that."""
    from aneurysm.training.run_folder import FoldsFolder

    folds = FoldsFolder(path)
    return [run.root for run in folds.runs()] if folds.config.is_file() else [path]


def _with_labels(tables: list[Path], labels: Path) -> list[Run]:
    """Read tables of predictions, and say what is left out of them on stderr."""
    from aneurysm.report.run import read_predicted

    return [read_predicted(path, labels, on_omission=lambda said: typer.echo(said, err=True)) for path in tables]


def _predicted(
    runs: list[Path],
    out: Path,
    evaluation: EvaluateOptions,
    fold: int | Literal["all"] | None,
    device: str,
    model: str | None,
) -> list[Run]:
    """Predict again, and show the progress on stderr."""
    from aneurysm.report.repredict import FreshOptions, predict_fresh

    options = FreshOptions(evaluation.cache, fold, device, model, evaluation.local_cache, evaluation.local_cache_gb)
    with Display("predict") as display:

        def on_progress(*counts: int) -> None:
            display.show(series_text(*counts), series_share(*counts))

        return predict_fresh(runs, out / "predictions", options, tell=display.say, on_progress=on_progress)
