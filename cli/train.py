"""aneurysm train: a cache -> a model, with its scores on held-out patients."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from aneurysm.cli.options import MOST_WORKERS, LocalCache, LocalCacheGb, chosen_workers
from aneurysm.cli.values import choice, number, parse_devices, parse_fold, patch_edges, whole
from aneurysm.errors import InterruptedRunError, UsageError
from aneurysm.inputs import InputKind, Wanted, describe, mistake

if TYPE_CHECKING:
    from aneurysm.training.config import ResolvedConfig

_MAY_CHANGE = {"cache", "local_cache", "local_cache_gb", "workers", "devices", "epochs"}
"""What may be changed when a run is resumed: it draws the same patches in the same order."""
_NO_RUN: Final = (InputKind.RUNS, InputKind.RUN_PART, InputKind.CHECKPOINT, InputKind.CACHE, InputKind.DATA_SET)
"""What is named in place of a run that is to be resumed."""
_VIEWS: Final = ("patch3d", "slab", "slices", "mip")
_LOSSES: Final = ("bce", "focal", "asl")
"""Of a patch's labels; others are set in the section losses of --config."""


def train(
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|URL", envvar="ANEURYSM_CACHE", help="Folder or URL of the cache.", show_default="cache"
        ),
    ] = None,
    local_cache: LocalCache = None,
    local_cache_gb: LocalCacheGb = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the run.", show_default="runs/<time>-<model>-fold<K>"),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TOML file (docs/training.md); options win over it.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="resnet3d18, resnet3d34, resnet3d18-dense, cnn3d, unet3d, efficientnet-b0, efficientnet-b3, "
            "attention-mil, or module:function.",
            show_default="resnet3d18",
        ),
    ] = None,
    view: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            parser=choice(_VIEWS),
            help="What the model sees: patch3d, slab, slices or mip; its settings are in the section view of --config.",
            show_default="the model's",
        ),
    ] = None,
    patch: Annotated[
        Any,  # Typer knows no unions
        typer.Option(metavar="Z[,Y,X]", parser=patch_edges, help="Voxels of a patch.", show_default="the model's"),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(metavar="N", parser=whole(1), help="Samples per step and device.", show_default="the model's"),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(metavar="N", parser=whole(1), help="How many.", show_default="20")
    ] = None,
    steps_per_epoch: Annotated[
        int | None, typer.Option(metavar="N", parser=whole(1), help="Batches of an epoch.", show_default="500")
    ] = None,
    fold: Annotated[
        Any,
        typer.Option(
            metavar="K|all",
            parser=parse_fold,
            help="The fold that is held out, from 0; all: a run for each, then a report of all.",
            show_default="0",
        ),
    ] = None,
    folds: Annotated[
        int | None, typer.Option(metavar="N", parser=whole(2), help="Folds of patients.", show_default="5")
    ] = None,
    folds_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="CSV with series_uid and fold, in place of --folds.", show_default=False),
    ] = None,
    test_fold: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            parser=whole(0),
            help="A fold neither trained on nor held out: kept for a test.",
            show_default="none",
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", parser=choice(_LOSSES), help="Of a patch's labels: bce, focal or asl.", show_default="bce"
        ),
    ] = None,
    sampling: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            parser=choice(("natural", "label", "stratified")),
            help="natural, label or stratified.",
            show_default="natural",
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            metavar="X", parser=number(0, above=True), help="Highest learning rate.", show_default="the model's"
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            parser=choice(("auto", "fp32", "bf16", "fp16")),
            help="auto, fp32, bf16 or fp16.",
            show_default="auto",
        ),
    ] = None,
    devices: Annotated[
        Any,
        typer.Option(
            metavar="auto|N",
            parser=parse_devices,
            help="GPUs, or processes on a CPU; auto: all GPUs, or one process.",
            show_default="auto",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            parser=whole(0, MOST_WORKERS),
            help="Processes per device that read patches.",
            show_default="what the CPUs allow",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", parser=whole(0), help="Of everything random.", show_default="0")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the run, or the runs of all folds, in --out, or the last one in runs/."
        ),
    ] = False,
    init: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Checkpoint whose weights to begin with.", show_default="random weights"),
    ] = None,
    modality: Annotated[
        list[str] | None, typer.Option(metavar="M...", help="Only these modalities.", show_default="all")
    ] = None,
    limit_train: Annotated[
        int | None,
        typer.Option(metavar="N", parser=whole(1), help="Train on at most N series.", show_default="all"),
    ] = None,
    keep_positives: Annotated[
        bool,
        typer.Option("--keep-positives", help="With --limit-train: take all positive series, and fewer of the others."),
    ] = False,
    limit_val: Annotated[
        int | None, typer.Option(metavar="N", parser=whole(1), help="Hold out at most N series.", show_default="all")
    ] = None,
) -> None:
    """Train a model. Ctrl-C or SIGTERM saves after the step; --resume goes on. Exit codes: 130, 143 if so stopped."""
    given: dict[str, Any] = {
        "cache": cache,
        "local_cache": local_cache,
        "local_cache_gb": local_cache_gb,
        "model": model,
        "view.name": view,
        "init": None if init is None else str(init),
        "patch": patch,
        "batch_size": batch_size,
        "epochs": epochs,
        "steps_per_epoch": steps_per_epoch,
        "fold": fold,
        "folds": folds,
        "folds_file": None if folds_file is None else str(folds_file),
        "test_fold": test_fold,
        "sampling.balance": sampling,
        "optimizer.learning_rate": lr,
        "precision": precision,
        "devices": devices,
        "workers": workers,
        "seed": seed,
        "modality": modality or None,
        "limit_train": limit_train,
        "keep_positives": keep_positives or None,
        "limit_val": limit_val,
    }
    options = {key: value for key, value in given.items() if value is not None}
    _run(options, out, config, loss, resume=resume)


def _run(options: dict[str, Any], out: Path | None, file: Path | None, loss: str | None, *, resume: bool) -> None:
    from aneurysm.training.run_folder import FoldsFolder, newest_run

    root = out or newest_run() if resume else out
    all_folds = options.get("fold") == "all" or (resume and root is not None and FoldsFolder(root).config.exists())
    if "init" in options:
        _check_init(Path(options["init"]), all_folds=all_folds)
    if all_folds:
        _run_all(options, root, file, loss, resume=resume)
    else:
        _run_one(options, root, file, loss, resume=resume)


def _run_all(options: dict[str, Any], root: Path | None, file: Path | None, loss: str | None, *, resume: bool) -> None:
    from aneurysm.training.launcher import launched_process
    from aneurysm.training.run_folder import FoldsFolder, default_folds_root

    launched = launched_process()
    if launched is not None and launched.size > 1:
        raise UsageError("--fold all starts its processes itself: start it once, or give each fold a job of its own")
    changes = {key: value for key, value in options.items() if (key, value) != ("fold", "all")}
    if resume and root is not None:
        folder = FoldsFolder(root)
        if not folder.config.exists():
            raise UsageError(
                f"there is nothing to go on from in {root}: it has no folds.toml, as runs of all folds have"
            )
        _check_changes(folder.config, changes, file, loss)
        from aneurysm.cli.train_folds import resume_folds

        resume_folds(folder, changes)
        return
    from aneurysm.cli.train_folds import begin_folds

    try:
        config = _resolved(file, changes | {"fold": 0}, loss)
    except UsageError:  # fold 0 may be kept for a test
        config = _resolved(file, changes | {"fold": 1}, loss)
    begin_folds(config, FoldsFolder(root or default_folds_root(config)))


def _run_one(options: dict[str, Any], root: Path | None, file: Path | None, loss: str | None, *, resume: bool) -> None:
    from aneurysm.training.launcher import is_first_process, is_launched
    from aneurysm.training.run_folder import RunFolder, default_root

    if resume and root is not None:
        folder = RunFolder(root)
        if not folder.last.exists() and (found := describe(folder.root)).kind in _NO_RUN:
            raise UsageError(mistake(found, Wanted.RUN) or f"{folder.root} is no run")
        if not folder.last.exists():
            raise UsageError(f"there is nothing to go on from in {folder.root}: it has no checkpoints/last.ckpt")
        _check_changes(folder.config, options, file, loss)
        # Here, not above: torch takes a second, which other commands and a mistake need not wait.
        from aneurysm.training.config_file import config_table, parse_resolved, read_resolved

        resolved = parse_resolved({**config_table(read_resolved(folder.config)), **options}, "options")
    else:
        if root is None and is_launched():
            raise UsageError("started by torchrun or SLURM, each process would name a folder of its own: give --out")
        resolved = _resolved(file, options, loss)
        folder = RunFolder(root or default_root(resolved))
    if "workers" in options and is_first_process():
        chosen_workers(options["workers"], devices=_n_devices(resolved.devices))
    from aneurysm.cli.train_progress import TrainProgress
    from aneurysm.training.fit import fit

    with TrainProgress() as progress:
        try:
            summary = fit(resolved, folder, resume=resume, progress=progress)
        except InterruptedRunError as stopped:
            progress.close()
            if is_first_process():
                typer.echo(
                    f"aneurysm: stopped, and saved. To go on: aneurysm train --out {folder.root} --resume", err=True
                )
            raise typer.Exit(128 + stopped.signal_number) from None
    if not is_first_process():
        return
    if not summary.epochs_now:
        typer.echo(f"All {summary.epochs} epochs of {folder.root} are done; --epochs {2 * summary.epochs} would go on.")
        return
    best = ", ".join(f"{name} {value:.3f}" for name, value in summary.metrics.items() if value is not None)
    typer.echo(f"{summary.epochs_now} epochs in {summary.seconds:.0f} s. Best: epoch {summary.best_epoch}, {best}.")
    typer.echo(f"Model: {folder.best}; predictions of the held-out series: {folder.predictions}")
    typer.echo(f"Curves: tensorboard --logdir {folder.tensorboard}")


def _check_changes(config: Path, options: dict[str, Any], file: Path | None, loss: str | None) -> None:
    if file is not None or loss is not None or set(options) - _MAY_CHANGE:
        raise UsageError(
            f"--resume goes on with {config}; besides it only {', '.join(sorted(_MAY_CHANGE))} may be given"
        )


def _resolved(file: Path | None, options: dict[str, Any], loss: str | None) -> ResolvedConfig:
    from aneurysm.training.config_file import load_config

    resolved = load_config(file, options).resolved()
    if loss is not None:
        resolved = load_config(file, {**options, "losses": _with_loss(resolved.losses, loss)}).resolved()
    return resolved


def _check_init(init: Path, *, all_folds: bool) -> None:
    """Make sure that it is a checkpoint or, for runs of all folds, a folder of such."""
    from aneurysm.training.run_folder import FoldsFolder

    if all_folds and FoldsFolder(init).config.exists():
        return
    found = describe(init)
    problem = mistake(found, Wanted.CHECKPOINT) if found.kind != InputKind.MISSING else f"there is no checkpoint {init}"
    if problem:
        raise UsageError(f"--init: {problem}")


def _n_devices(devices: int | str) -> int:
    if isinstance(devices, int):
        return devices
    import torch

    return max(1, torch.cuda.device_count())


def _with_loss(losses: dict[str, float], name: str) -> dict[str, float]:
    """Return the losses with another one of the patch's labels."""
    weight = max([losses.get(kind, 0.0) for kind in _LOSSES]) or 1.0
    return {name: weight, **{term: w for term, w in losses.items() if term not in _LOSSES}}
