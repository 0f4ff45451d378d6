"""aneurysm predict: checkpoints and series -> probabilities and places."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aneurysm.cli.exits import Exit, unwind_on_sigterm
from aneurysm.cli.options import MOST_WORKERS, LocalCache, LocalCacheGb, MemoryMb, TimeoutS, chosen_workers
from aneurysm.cli.predict_input import find, split
from aneurysm.cli.predict_output import PredictProgress, fill_table, laid_over, print_answer
from aneurysm.cli.values import choice, number, parse_devices, whole
from aneurysm.errors import UsageError
from aneurysm.labels import LABELS
from aneurysm.prediction_table import PREDICTED

if TYPE_CHECKING:
    from aneurysm.inference.calibration import Calibration
    from aneurysm.inference.output_table import OutputTable
    from aneurysm.inference.prediction import Prediction
    from aneurysm.inference.read_series import Failure


class FallbackName(StrEnum):
    """What stands for the answer about a series that can't be read."""

    PREVALENCE = "prevalence"


def predict(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT... SERIES...",
            help="Checkpoints (*.ckpt, or folders of runs), several to be averaged; then series: a folder of DICOM "
            "files, a folder of such folders, a cached volume, or a cache; or the URL of one.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A .csv or .json file; the same command resumes it.",
            show_default="to the terminal",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="cpu, cuda or cuda:1; auto takes a GPU if there is one.")
    ] = "auto",
    devices: Annotated[
        Any,  # Typer knows no unions
        typer.Option(
            metavar="auto|N", parser=parse_devices, help="N GPUs, or processes on a CPU; auto takes all GPUs."
        ),
    ] = "1",
    flip: Annotated[bool, typer.Option("--flip", help="Average over the head and its mirror image.")] = False,
    tta: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            parser=whole(1, 100),
            help="Average over N draws of the training's augmentation, too.",
            show_default="none",
        ),
    ] = None,
    candidates: Annotated[
        int, typer.Option(metavar="N", parser=whole(0, 10_000), help="Places for each series, at most.")
    ] = 10,
    overlap: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            parser=number(0, 0.9),
            help="Share of their length that neighbouring windows have in common, 0 to 0.9.",
            show_default="as in validation",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", parser=whole(1), help="Windows at once.", show_default="as in validation")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            parser=choice(("fp32", "bf16", "fp16")),
            help="fp32, bf16 or fp16.",
            show_default="bf16 on a GPU, else fp32",
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(metavar="N", parser=whole(1, MOST_WORKERS), help="Series that are read ahead, on each device."),
    ] = 1,
    timeout_s: TimeoutS = None,
    memory_mb: MemoryMb = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="The architecture, if it is your own.",
            show_default="as the checkpoint says",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A calibration.json of `aneurysm evaluate`, or its folder.",
            show_default="RUN/evaluation's",
        ),
    ] = None,
    no_calibration: Annotated[bool, typer.Option("--no-calibration", help="Leave probabilities as they are.")] = False,
    gate: Annotated[
        float,
        typer.Option(
            metavar="ALPHA",
            parser=number(0),
            help="Sites times present to this power; 0 leaves them as they are.",
        ),
    ] = 0.0,
    fallback: Annotated[
        FallbackName | None,
        typer.Option(
            metavar="prevalence",
            help="For series without an answer: how frequent each label was in training.",
            show_default="none",
        ),
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try again what had no answer before.")] = False,
    overlay: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write maps of lesions there, as NIfTI; see docs/overlays.md.", show_default="none"
        ),
    ] = None,
    overlay_label: Annotated[
        str, typer.Option(metavar="LABEL", parser=choice(LABELS), help="What the maps show.")
    ] = LABELS[13],
    cam: Annotated[bool, typer.Option("--cam", help="Make the maps by Grad-CAM, for a model that has none.")] = False,
    local_cache: LocalCache = None,
    local_cache_gb: LocalCacheGb = None,
) -> None:
    """
    Say for each series how likely an aneurysm is, at which of 13 sites, and where. Not for clinical use.

    Exit code 0: all predicted; 8: some could not be, and their rows say why.
    """
    # Before what follows is imported, which takes seconds: a mistyped path is answered at once.
    checkpoints, series = split(paths)
    from aneurysm.inference.calibration import base_rates
    from aneurysm.inference.multi_device import device_names, predict_on
    from aneurysm.inference.output_table import model_key, open_output
    from aneurysm.inference.overlays import Overlays
    from aneurysm.inference.predictor import load_predictor
    from aneurysm.models.device import usual_precision

    unwind_on_sigterm()
    started = time.perf_counter()
    names = device_names(device, devices)
    workers = chosen_workers(workers, devices=len(names))
    fitted = _calibration(checkpoints, calibration, off=no_calibration)
    rates = None if fallback is None else base_rates(checkpoints)
    # Before the table's key is made: a table that was started on a CPU must not continue in another precision on a GPU.
    precision = precision or usual_precision(names[0])
    options = {
        "flip": flip,
        "tta": tta or 0,
        "candidates": candidates,
        "overlap": overlap,
        "precision": precision,
        "gate": gate,
    }
    loading: dict[str, Any] = options | {
        "batch_size": batch_size,
        "workers": workers,
        "architecture": model,
        "calibration": None if fitted is None else fitted.path,
        "map_label": None if overlay is None else overlay_label,
        "cam": cam,
        "timeout_s": timeout_s,
        "memory_mb": memory_mb,
    }
    with ExitStack() as stack:
        table = None
        if out is not None:
            key = "" if fitted is None else fitted.key
            made_by = model_key(checkpoints, **options, model=model, calibration=key, fallback=fallback)
            table = stack.enter_context(open_output(out, made_by, key, gate))
        predictor = load_predictor(checkpoints, device=names[0], **loading) if len(names) == 1 else None
        overlays = None if overlay is None else Overlays(overlay, overlay_label, cam=cam)
        present, absent = find(series, local_cache, local_cache_gb)
        if predictor is not None:
            predictor.check(present)
        if table is not None:
            table.write()  # that it can't be written must not show after hours
            absent = _new(absent, table, retry_failed=retry_failed)
        todo = [
            p
            for p in present
            if table is None
            or not table.has(p.uid, retry_failed=retry_failed)
            or (overlays is not None and table.rows[p.uid].status == PREDICTED and not overlays.has(p.uid))
        ]
        progress = stack.enter_context(PredictProgress(len(absent) + len(todo)))
        if predictor is None:
            predicted = predict_on(names, checkpoints, loading, todo, progress.windows)
        else:
            predicted = predictor.predict(todo, progress.windows)
        if overlays is not None:
            predicted = laid_over(predicted, overlays)
        answers = progress.follow(_with_rates(chain(absent, predicted), rates))
        if table is None:
            bad = sum([print_answer(answer) for answer in answers])
        else:
            fill_table(table, answers)
            bad = table.bad
            typer.echo(
                f"{len(todo)} series in {time.perf_counter() - started:.1f} s; {out} holds {len(table.rows)}, "
                f"{bad} of them without an answer."
            )
    typer.echo("For research. Not for clinical use.", err=True)
    if bad:
        raise typer.Exit(Exit.SOME_FAILED)


def _new(absent: list[Failure], table: OutputTable, *, retry_failed: bool) -> list[Failure]:
    """Leave out those that the table has a row of, above all an answer: today its folder may just not be mounted."""
    new = []
    for failure in absent:
        if table.has(failure.series_uid, retry_failed=retry_failed):
            typer.echo(f"{failure.series_uid}: {failure.detail}; its row stays as it is", err=True)
        else:
            new.append(failure)
    return new


def _calibration(checkpoints: list[Path], chosen: Path | None, *, off: bool) -> Calibration | None:
    """Return the calibration that was asked for, or that lies with the only run there is; say which."""
    from aneurysm.inference.calibration import own_calibration, read_calibration

    if off and chosen is not None:
        raise UsageError("--calibration and --no-calibration exclude each other")
    fitted: Calibration | None = None
    if chosen is not None:
        fitted = read_calibration(chosen)
        fitted.check(checkpoints)
    elif not off and len(checkpoints) == 1:
        try:
            fitted = own_calibration(checkpoints[0])
        except UsageError as error:
            typer.echo(f"not calibrated: {error}", err=True)
    if fitted is not None:
        typer.echo(f"calibrated with {fitted.path}; --no-calibration leaves probabilities as they are", err=True)
    return fitted


def _with_rates(
    answers: Iterable[Prediction | Failure], rates: dict[str, float] | None
) -> Iterator[Prediction | Failure]:
    """Give base rates, if there are any, to series without an answer."""
    from aneurysm.inference.read_series import Failure

    for answer in answers:
        yield replace(answer, probabilities=rates) if isinstance(answer, Failure) else answer
