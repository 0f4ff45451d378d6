"""Lightning's trainer, set up for our order of things, and what to say when its device has no memory left."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy

from aneurysm.errors import AneurysmError, DeviceMemoryError, UsageError
from aneurysm.models.device import check_devices, is_out_of_memory
from aneurysm.processes.files import is_disk_full
from aneurysm.training.checkpoint import read_file, save_atomically
from aneurysm.training.config import ResolvedConfig
from aneurysm.training.module import PatchModule
from aneurysm.training.run_folder import is_launched
from aneurysm.training.timed_loader import TimedBatches

_LIGHTNINGS: Final = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
"""Lightning's names of precisions."""


_OF_DAMAGE: Final = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, AssertionError)
"""What comes of a state that is not what it should be, in Lightning's hands and torch's."""


class _OurCheckpoints(TorchCheckpointIO):
    """
    Lightning's checkpoints, written and read as ours are.

    Parameters
    ----------
    resumed_from
        What the checkpoint holds that Lightning is going to load: it takes seconds to read, and is read before anyway.
    """

    def __init__(self, resumed_from: dict[str, Any] | None) -> None:
        self._resumed_from = resumed_from

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ARG002
        save_atomically(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:  # noqa: ARG002
        # Not held on to: it is several times as large as the model.
        content, self._resumed_from = self._resumed_from, None
        return read_file(Path(path)) if content is None else content


def make_trainer(
    config: ResolvedConfig, module: PatchModule | None = None, resumed_from: dict[str, Any] | None = None
) -> pl.Trainer:
    """
    Return the trainer for this machine's devices; callbacks are to be added.

    Parameters
    ----------
    module
        That is to be trained; None: one whose losses reach all of its weights.
    resumed_from
        What `read_file` returned of the checkpoint that it is going to resume from, if any.

    Raises
    ------
    UsageError
        It has fewer GPUs, or without any fewer CPUs, than were asked for.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    # A launcher may have bound each process to a CPU of its own.
    if config.devices != "auto" and (gpus or not is_launched()):
        check_devices(config.devices, gpus=gpus)
    with _spared():
        return _make_trainer(config, module, resumed_from)


@contextmanager
def _spared() -> Iterator[None]:
    """Silence what Lightning warns of without a reason."""
    with warnings.catch_warnings():
        # Lightning 2.6 with the newest torch.
        warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
        if "SLURM_JOB_ID" not in os.environ:
            # It advises to use srun wherever that is installed. Only in a job is that of any use.
            warnings.filterwarnings("ignore", "The `srun` command is available")
        yield


def _make_trainer(
    config: ResolvedConfig, module: PatchModule | None, resumed_from: dict[str, Any] | None
) -> pl.Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    plugins: list[Any] = [_OurCheckpoints(resumed_from)]
    if SLURMEnvironment.detect():
        # Its own requeueing would save elsewhere, and start from the beginning.
        plugins.append(SLURMEnvironment(auto_requeue=False))
    nodes = _nodes()
    devices = max(1, torch.cuda.device_count()) if config.devices == "auto" else config.devices
    strategy: Any = "auto"
    if devices * nodes > 1:
        strategy = DDPStrategy(find_unused_parameters=module is not None and module.leaves_weights_out())
    trainer = pl.Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=config.devices,
        num_nodes=nodes,
        strategy=strategy,
        precision=_LIGHTNINGS[config.precision],  # type: ignore[arg-type]
        max_epochs=config.epochs,
        accumulate_grad_batches=config.optimizer.accumulate,
        gradient_clip_val=config.optimizer.clip_norm or None,
        plugins=plugins,
        # Ours: the loader has its ranks, and validation, tables, checkpoints and progress are callbacks.
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # Lightning's way to tell ranks of SIGTERM reads a number from the GPU in every step. Ours does in every twentieth.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]  # noqa: SLF001
    return trainer


def _nodes() -> int:
    """Return over how many machines torchrun or SLURM has spread this run; Lightning wants to be told."""
    if "GROUP_WORLD_SIZE" in os.environ:
        return int(os.environ["GROUP_WORLD_SIZE"])
    return int(os.environ.get("SLURM_NNODES", "1")) if SLURMEnvironment.detect() else 1


def run_trainer(trainer: pl.Trainer, module: PatchModule, batches: TimedBatches, last: Path | None) -> None:
    """
    Train to the end, or to the first error.

    Parameters
    ----------
    last
        The checkpoint to go on from; None: begin.

    Raises
    ------
    UsageError
        What the checkpoint says of optimiser, schedule, loops or callbacks is not what it should be.
    """
    try:
        with _spared():
            trainer.fit(module, train_dataloaders=batches, ckpt_path=last, weights_only=True)
    except BaseException as error:
        # Other processes that Lightning started would wait for this one for ever.
        if (launcher := trainer.strategy.launcher) is not None:
            launcher.kill(9)
        if last is None or module.has_begun:
            raise
        if isinstance(error, _OF_DAMAGE) and not _is_another(error):
            raise UsageError(
                f"{last} can't be resumed from: its state of the run is damaged ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:200]}). Begin a new run with --init {last.with_name('best.ckpt')}"
            ) from error
        raise


def _is_another(error: Exception) -> bool:
    """Return True of an error that has nothing to do with what a checkpoint holds."""
    return isinstance(error, AneurysmError) or is_disk_full(error) or is_out_of_memory(error)


@contextmanager
def raise_step_memory(config: ResolvedConfig, device: torch.device) -> Iterator[None]:
    """Turn a lack of memory into a `DeviceMemoryError`, which says what was used, and what to lower."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not is_out_of_memory(error):
            raise
        patch = "x".join(map(str, config.patch))
        has = ""
        if device.type == "cuda":
            total = torch.cuda.get_device_properties(device).total_memory / 1e9
            has = (
                f", which has {total:.0f} GB, of which {torch.cuda.max_memory_allocated(device) / 1e9:.0f} were in use"
            )
        raise DeviceMemoryError(
            f"out of memory on {device}{has}, with batches of {config.batch_size} patches of {patch} voxels in "
            f"{config.precision} (in validation: {config.validation.batch_size} at once). Lower --batch-size (with "
            "optimizer.accumulate the steps stay the same) or --patch"
            + (", or take --precision bf16" if config.precision == "fp32" and device.type == "cuda" else "")
        ) from error
