"""Runs, a cache -> the same runs with new predictions, of held-out series or of such as they have never seen.

What is written is a folder like a run's, so that it is read, checked and evaluated as one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from aneurysm.cache.cache import Cache, open_cache
from aneurysm.errors import SpecMismatchError, UsageError
from aneurysm.inference.calibration import checkpoint_digest
from aneurysm.labels import UNKNOWN_MODALITY
from aneurysm.models.device import checked_device
from aneurysm.processes.files import raise_no_space
from aneurysm.report.run import Run, read_run
from aneurysm.training.checkpoint import load_checkpoint
from aneurysm.training.config import ResolvedConfig
from aneurysm.training.config_file import config_toml
from aneurysm.training.folds import fold_rows, write_folds
from aneurysm.training.lineage import training_series
from aneurysm.training.run_folder import RunFolder
from aneurysm.training.validation import ValidationPart, predict_series, write_predictions


@dataclass(frozen=True)
class FreshOptions:
    """
    What is predicted again, and on what.

    Attributes
    ----------
    cache
        Folder or URL of the cache, if not the one that each run was trained on.
    fold
        The fold to predict: the one that the run held out, which is what None means, or the one that it kept for a
        test. ``all``: the whole cache, which may hold no series and no patient that the run was trained on.
    device
        ``cpu``, ``cuda``, ``cuda:1``; ``auto`` takes a GPU if there is one.
    architecture
        ``module:function``, if it is the user's own.
    local_cache, local_cache_gb
        See `open_cache`.
    """

    cache: str | Path | None = None
    fold: int | Literal["all"] | None = None
    device: str = "auto"
    architecture: str | None = None
    local_cache: str | None = None
    local_cache_gb: float | None = None


def predict_fresh(
    roots: Sequence[Path],
    out: Path,
    options: FreshOptions,
    *,
    tell: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[int, int, int, int], None] = lambda _done, _total, _window, _windows: None,
) -> list[Run]:
    """
    Predict with the best checkpoint of each run, and write predictions into ``out/<name of the run>``.

    Parameters
    ----------
    tell
        Called with what the user should know.
    on_progress
        Called with how many series of a run are done, and of how many; then the same of the next one's windows.

    Raises
    ------
    UsageError
        A run has no best checkpoint or no folds, was trained on what is to be predicted, there is nothing to do, or no
        such device.
    SpecMismatchError
        The cache is of another spec than the checkpoint.
    CacheError
        The cache, or a volume in it, is missing or damaged.
    NoSpaceError
        The disk is full.
    """
    names = [root.resolve().name for root in roots]
    if len(set(names)) < len(names):
        raise UsageError("two of the runs have one name: evaluate them one by one")
    options = replace(options, device=checked_device(options.device))
    with raise_no_space(out, "Free some, and evaluate again"):
        return [
            _predict(RunFolder(root), out / name, options, tell, on_progress)
            for root, name in zip(roots, names, strict=True)
        ]


def _predict(
    run: RunFolder,
    out: Path,
    options: FreshOptions,
    tell: Callable[[str], None],
    on_progress: Callable[[int, int, int, int], None],
) -> Run:
    checkpoint = load_checkpoint(run.best)
    config = checkpoint.config
    place = options.cache or config.cache
    cache = open_cache(place, local_cache=options.local_cache, local_cache_gb=options.local_cache_gb)
    if cache.spec.digest != checkpoint.spec.digest:
        raise SpecMismatchError(
            f"{cache.root} is of spec {cache.spec.name!r} (digest {cache.spec.digest}), {run.root} was trained on "
            f"{checkpoint.spec.name!r} ({checkpoint.spec.digest})"
        )
    part: ValidationPart = "external"
    if options.fold == "all":
        volumes, fold, what = _unseen(cache, run, config), 0, "all series"
    else:
        fold = config.fold if options.fold is None else options.fold
        volumes, what = _of_fold(cache, run, config, fold), f"fold {fold}"
        part = "val" if fold == config.fold else "test"
    for i in volumes:
        plain = cache.modalities[i] == UNKNOWN_MODALITY
        if not (checkpoint.takes_plain_arrays if plain else checkpoint.takes_dicom):
            raise SpecMismatchError(
                f"series {cache.uids[i]} of {cache.root} is of modality {cache.modalities[i]!r}; {run.root} was "
                f"trained on {', '.join(checkpoint.modalities or ['arrays without one'])}, whose values mean something "
                "else"
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the folder {out} can't be made: {error.strerror}") from error
    device = torch.device(options.device)
    if device.type == "cpu":
        config = config.model_copy(update={"precision": "fp32"})
    tell(f"predicting {what} of {cache.root} ({len(volumes)} series) with {run.best}")
    predictions = predict_series(
        checkpoint.build_model(options.architecture).to(device),
        cache,
        volumes,
        config,
        device,
        workers=1,
        on_progress=lambda done, window, windows: on_progress(done, len(volumes), window, windows),
    )
    new = RunFolder(out)
    text = config_toml(checkpoint.config.model_copy(update={"cache": str(cache.root), "fold": fold, "test_fold": None}))
    name = run.root.resolve().name
    new.config.write_text(f"# Predicted again: {what}, with the best checkpoint of {name}.\n{text}", encoding="utf-8")
    if options.fold == "all":
        # Runs that never saw a series agree on its fold, so that they can be averaged.
        write_folds(new.folds, cache.uids, cache.patient_keys, [fold] * len(cache))
    else:
        shutil.copyfile(run.folds, new.folds)
    of_fold = dict.fromkeys(volumes, fold)
    write_predictions(new.predictions, cache, predictions, of_fold, epoch=checkpoint.epoch, part=part)
    for old, copy in ((run.metrics, new.metrics), (run.init, new.init)):
        copy.unlink(missing_ok=True)
        if old.exists():
            shutil.copyfile(old, copy)
    return replace(read_run(out), name=name, checkpoint=checkpoint_digest(run.best), fresh=what)


def _not_trained_on(config: ResolvedConfig) -> set[int | None]:
    return {config.fold, config.test_fold} - {None}


def _of_fold(cache: Cache, run: RunFolder, config: ResolvedConfig, fold: int) -> list[int]:
    if fold not in _not_trained_on(config):
        raise UsageError(
            f"{run.root} was trained on fold {fold}: it held out "
            f"{' and '.join(f'fold {k}' for k in sorted(_not_trained_on(config), key=str))}. For a cache of other "
            "patients give --fold all"
        )
    held_out = {uid for uid, (_, at) in fold_rows(run.folds).items() if at == fold}
    volumes = [
        i
        for i, (uid, modality) in enumerate(zip(cache.uids, cache.modalities, strict=True))
        if uid in held_out and (not config.modality or modality in config.modality)
    ]
    if not volumes:
        raise UsageError(
            f"none of the {len(held_out)} series in fold {fold} of {run.root} is in {cache.root}. For a cache of other "
            "patients give --fold all"
        )
    return volumes


def _unseen(cache: Cache, run: RunFolder, config: ResolvedConfig) -> list[int]:
    trained, _ = training_series(run, config)
    patients = set(trained.values()) - {""}
    seen = [uid for uid, key in zip(cache.uids, cache.patient_keys, strict=True) if uid in trained or key in patients]
    if seen:
        raise UsageError(
            f"{run.root} was trained on {len(seen)} of the {len(cache)} series in {cache.root}, or on others of their "
            f"patients, such as {seen[0]}: a score on these would be too good. Without --fold, the fold that it held "
            "out is predicted"
        )
    if not len(cache):
        raise UsageError(f"{cache.root} holds no volumes")
    return list(range(len(cache)))
