"""fit: a configuration -> a run's folder with checkpoints, scores and predictions."""

from __future__ import annotations

import logging
import time
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from aneurysm.cache.cache import Cache, open_cache
from aneurysm.errors import AneurysmError, InterruptedRunError, SpecMismatchError, UsageError
from aneurysm.models.device import check_precision, is_out_of_memory
from aneurysm.models.registry import build_model
from aneurysm.patches.loader import PatchLoader, raise_loader_errors
from aneurysm.patches.plan import Plan
from aneurysm.patches.views.view import describe_view
from aneurysm.processes.files import write_atomically
from aneurysm.processes.threads import usable_cpus
from aneurysm.training.checkpoint import load_checkpoint, parse_checkpoint, read_file, take_weights
from aneurysm.training.config import ResolvedConfig, TrainConfig
from aneurysm.training.config_file import config_toml
from aneurysm.training.folds import fold_rows, write_folds
from aneurysm.training.learner import Learner, raise_step_memory
from aneurysm.training.lineage import Lineage, training_series, write_lineage
from aneurysm.training.loop import TrainingLoop
from aneurysm.training.module import PatchModule
from aneurysm.training.objective import positive_weights
from aneurysm.training.pretrained import note_pretrained, without_pretrained
from aneurysm.training.progress import RunFacts, Silent, TrainingProgress
from aneurysm.training.ranks import Ranks, choose_ranks, joined, started_ranks
from aneurysm.training.run_folder import RunFolder, default_root, locked_run, log_file, raise_full_disk
from aneurysm.training.split import Split, split_series
from aneurysm.training.stop_signal import StopSignal
from aneurysm.training.timed_loader import TimedBatches

_PRESENT: Final = -1
_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedRun:
    """
    A run that came to its end.

    Attributes
    ----------
    epochs
        Done in all, and of these now.
    metrics
        Of the best epoch, as in its checkpoint.
    """

    folder: Path
    epochs: int
    epochs_now: int
    best_epoch: int
    metrics: dict[str, float | None]
    seconds: float

    @property
    def best_checkpoint(self) -> Path:
        """Checkpoint of the best epoch: what `aneurysm.load_predictor` takes."""
        return RunFolder(self.folder).best


def train(
    config: TrainConfig,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    progress: TrainingProgress | None = None,
) -> TrainedRun:
    """
    Train a model, or resume a run.

    Parameters
    ----------
    config
        What to train, on what; what it leaves open is the model's default. To resume, as it was, but for `epochs`,
        `cache`, `devices` and `workers`.
    out
        Folder of the run, which must not be one already unless it is resumed; None: ``runs/<time>-<model>-fold<K>``.
    resume
        Continue from the run's ``last.ckpt``.
    progress
        Is told how it goes.

    Raises
    ------
    UsageError
        There is nothing to train on, no such model, a checkpoint does not fit, or the folder holds a run already.
    CacheError, StoreError
        The cache can't be read.
    DivergedError, DeviceMemoryError, LoaderError, NoSpaceError
        In mid-run; ``last.ckpt`` is sound.
    InterruptedRunError
        A signal came; ``last.ckpt`` is where it came.
    """
    if resume and out is None:
        raise UsageError("name the folder of the run that is to be resumed: out=...")
    resolved = config.resolved()
    folder = RunFolder(default_root(resolved) if out is None else Path(out))
    return fit(resolved, folder, resume=resume, progress=progress)


def fit(
    config: ResolvedConfig,
    folder: RunFolder,
    *,
    resume: bool = False,
    progress: TrainingProgress | None = None,
) -> TrainedRun:
    """
    Train, or resume a run.

    Parameters
    ----------
    config
        Of the run; if it is resumed, as it was, but for `epochs`, `cache`, `devices` and `workers`.
    folder
        Of the run.
    resume
        Resume from ``last.ckpt``.
    progress
        To tell; only the first of several processes does.

    Raises
    ------
    UsageError
        There is nothing to train on, a checkpoint does not fit, or the folder holds a run already, or another process
        trains in it.
    CacheError
        The cache is missing or damaged, also in validation; or is of another spec than the run.
    StoreError
        The object store that the cache is in can't be read.
    DivergedError, DeviceMemoryError, LoaderError, NoSpaceError
        In mid-run; ``last.ckpt`` is sound.
    InterruptedRunError
        A signal came; ``last.ckpt`` is where it came.
    """
    ranks = choose_ranks(config.devices)
    with raise_full_disk(folder), locked_run(folder) if ranks.is_first else nullcontext():
        if ranks.is_first and not resume:
            folder.check_unused()
        config = for_machine(config)
        other = partial(_train_other, config=config, folder=folder, resume=resume)
        with started_ranks(ranks, other) as first:
            return _train(first, config, folder, resume=resume, progress=progress or Silent())


def _train_other(ranks: Ranks, *, config: ResolvedConfig, folder: RunFolder, resume: bool) -> None:
    """Train as another rank than the first one, in a process that it started; it tells of an interruption."""
    with suppress(InterruptedRunError):
        _train(ranks, config, folder, resume=resume, progress=Silent())


def _train(
    ranks: Ranks,
    config: ResolvedConfig,
    folder: RunFolder,
    *,
    resume: bool,
    progress: TrainingProgress,
) -> TrainedRun:
    started = time.perf_counter()
    if not ranks.is_first:
        logging.getLogger("aneurysm.training").setLevel(logging.ERROR)  # the first one speaks for all
        progress = Silent()
    cache = open_cache(config.cache, local_cache=config.local_cache, local_cache_gb=config.local_cache_gb)
    last = read_file(folder.last) if resume else None
    if last is not None:
        _check_resumable(last, folder, cache)
    split = split_series(cache, config, folds_file=folder.folds if resume else None)
    if last is not None and last.get("folds", split.digest(cache)) != split.digest(cache):
        raise UsageError(
            f"{folder.folds} has other folds than when the run was saved: it would be trained or scored on other "
            f"series. Put it back as it was, or begin a new run with --init {folder.last} --folds-file {folder.folds}"
        )
    if config.pos_weight == "auto":
        config = config.model_copy(update={"pos_weight": _positive_weights(config, cache, split)})
    if not resume:
        config = note_pretrained(config)
    torch.manual_seed(config.seed)
    view = config.view_on(cache.spec)
    options = without_pretrained(config.model_options) if resume else config.model_options
    module = PatchModule(build_model(config.model, config.in_channels(view), **options), config, view)
    lineage = None if config.init is None or resume else _initialize(Path(config.init), module, cache)
    workers = usual_workers(config, ranks.local_size)
    loader = PatchLoader(
        cache,
        volumes=split.train,
        view=view,
        batch_size=config.batch_size,
        steps=config.steps_per_epoch,
        sampling=config.sampling.as_sampling(),
        seed=config.seed,
        workers=workers,
        rank=ranks.rank,
        ranks=ranks.size,
        vessels=module.needs_vessels,
        pin_memory=ranks.device.type == "cuda",
    )
    first_epoch = 0 if last is None else _resume_loader(last, folder, config, loader)
    if ranks.is_first:
        _write_decisions(folder, config, cache, split, lineage, resume=resume)
    stop = StopSignal()
    with (
        log_file(folder.log, wanted=ranks.is_first),
        stop.caught(),
        joined(ranks),
        raise_step_memory(config, describe_view(view), ranks.device),
        closing(loader),
        raise_loader_errors(),
    ):
        learner = Learner(module, config, ranks)
        loop = TrainingLoop(
            config,
            ranks,
            learner,
            TimedBatches(loader, ranks.device, config.optimizer.accumulate),
            folder=folder,
            cache=cache,
            split=split,
            stop=stop,
            progress=progress,
            workers=workers,
        )
        if last is not None:
            _restore(loop, last, folder)
        del last  # it is several times as large as the model
        progress.started(_facts(config, folder, cache, split, module, ranks, first_epoch))
        if split.limit:
            _log.info("%s", split.limit)
        for warning in (*split.warnings, *([] if lineage is None else [_describe_lineage(lineage, cache, split)])):
            _log.warning("%s", warning)
        loop.run()
    best = load_checkpoint(folder.best) if folder.best.exists() else None
    return TrainedRun(
        folder.root,
        config.epochs,
        max(0, config.epochs - first_epoch),
        best.epoch if best else 0,
        best.metrics if best else {},
        time.perf_counter() - started,
    )


def for_machine(config: ResolvedConfig) -> ResolvedConfig:
    """Decide what depends on the machine, so that the run's config.toml has it; `UsageError` if it can't do it."""
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"
    check_precision(precision, "cuda" if torch.cuda.is_available() else "cpu")
    return config.model_copy(update={"precision": precision})


def _positive_weights(config: ResolvedConfig, cache: Cache, split: Split) -> tuple[float, ...]:
    samples, view = config.steps_per_epoch * config.batch_size, config.view_on(cache.spec)
    sampling = config.sampling.as_sampling().of(view.scope)
    plan = Plan(cache, split.train, sampling, samples, config.batch_size, config.seed)
    return positive_weights(cache, plan, view.shape if view.scope == "patch" else None)


def usual_workers(config: ResolvedConfig, ranks: int = 1) -> int:
    """Return how many processes are to read for each of a machine's ranks, if the configuration leaves it open."""
    if config.workers is not None:
        return config.workers
    cpus = max(1, usable_cpus() // ranks)
    # On a CPU the model wants them all; one process keeps up with it.
    return min(16, cpus) if torch.cuda.is_available() else min(1, cpus - 1)


def _initialize(init: Path, module: PatchModule, cache: Cache) -> Lineage:
    """Put the weights of a checkpoint that fit into the model; return what they have been trained on."""
    checkpoint = load_checkpoint(init)
    n_tensors = take_weights(module.model, checkpoint.weights)
    _log.info("began with %d of %d tensors of %s", n_tensors, len(module.model.state_dict()), init)
    if checkpoint.spec.digest != cache.spec.digest:
        _log.warning(
            "%s was trained on a cache of spec %s (digest %s), this one is of %s (digest %s): voxels differ",
            init, checkpoint.spec.name, checkpoint.spec.digest, cache.spec.name, cache.spec.digest,
        )  # fmt: skip
    run = RunFolder(init.resolve().parent.parent)
    if run.last.parent != init.resolve().parent or not (run.config.exists() and run.folds.exists()):
        return Lineage(str(init), {}, known=False)
    series, known = training_series(run, checkpoint.config)
    return Lineage(str(init), series, known)


def _describe_lineage(lineage: Lineage, cache: Cache, split: Split) -> str:
    return lineage.describe([cache.uids[i] for i in split.val], dict(zip(cache.uids, cache.patient_keys, strict=True)))


def _check_resumable(last: dict[str, Any], folder: RunFolder, cache: Cache) -> None:
    """Make sure that the run would resume with the same patches."""
    checkpoint = parse_checkpoint(last, folder.last)
    if checkpoint.spec.digest != cache.spec.digest:
        raise SpecMismatchError(
            f"the run was trained on a cache of digest {checkpoint.spec.digest}, but {cache.root} has "
            f"{cache.spec.digest}"
        )
    if differing := fold_rows(folder.folds).keys() ^ set(cache.uids):
        raise UsageError(
            f"{cache.root} has other series than when the run began ({len(differing)} came or went, as "
            f"{min(differing)}): it can't go on exactly. Begin a new run with --init {folder.last} and --folds-file, a "
            f"copy of {folder.folds} with a row for each new series: in other folds held-out patients would be "
            "such as the weights were trained on"
        )


def _resume_loader(last: dict[str, Any], folder: RunFolder, config: ResolvedConfig, loader: PatchLoader) -> int:
    """Return how many epochs the run has behind it, sure that it can have as many as it is to."""
    if "loader" not in last:
        raise UsageError(f"{folder.last} has weights alone, and nothing to go on from: is it a best.ckpt?")
    loader.load_state_dict(last["loader"])
    first = int(last["epoch"])
    if config.epochs < first:
        raise UsageError(f"{folder.root} has {first} epochs behind it: it can't have {config.epochs}")
    return first


def _restore(loop: TrainingLoop, last: dict[str, Any], folder: RunFolder) -> None:
    """Let the loop resume from ``last.ckpt``, whose parts may be of any type."""
    try:
        loop.load_state_dict(last)
    except Exception as error:
        if isinstance(error, AneurysmError) or is_out_of_memory(error):
            raise
        raise UsageError(
            f"{folder.last} can't be resumed from: its state of the run is damaged ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}). Begin a new run with --init {folder.best}"
        ) from error


def _write_decisions(
    folder: RunFolder, config: ResolvedConfig, cache: Cache, split: Split, lineage: Lineage | None, *, resume: bool
) -> None:
    """Write what was decided."""
    if not resume:
        folder.create()
        write_folds(folder.folds, cache.uids, cache.patient_keys, split.folds)
        if lineage is not None:
            write_lineage(folder.init, lineage)
    # Last: with it the folder is a run. And again when it resumes, perhaps with more epochs or another cache.
    write_atomically(folder.config, config_toml(config))


def _facts(
    config: ResolvedConfig,
    folder: RunFolder,
    cache: Cache,
    split: Split,
    module: PatchModule,
    ranks: Ranks,
    first_epoch: int,
) -> RunFacts:
    def counts(series: list[int]) -> tuple[int, int]:
        return len(series), int(np.sum(cache.labels[series, _PRESENT] == 1))

    if ranks.device.type == "cuda":
        device = f"{ranks.size} x {torch.cuda.get_device_name()}"
    else:
        device = f"CPU, {torch.get_num_threads()} threads" + (f" x {ranks.size}" * (ranks.size > 1))
    millions = sum(p.numel() for p in module.model.parameters()) / 1e6
    return RunFacts(
        folder=folder.root,
        device=f"{device}, {config.precision}",
        model=f"{config.model} ({millions:.1f} M parameters)",
        train=counts(split.train),
        val=counts(split.val),
        limit=split.limit,
        samples=describe_view(module.view),
        batch_size=config.batch_size * ranks.size,
        epochs=config.epochs,
        steps_per_epoch=config.steps_per_epoch,
        first_epoch=first_epoch,
    )
