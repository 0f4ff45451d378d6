"""EpochEnd: what follows the steps of an epoch, in this order: losses, validation, tables, checkpoints; and leaving."""

from __future__ import annotations

import logging
import time
from typing import Any, Final

import lightning.pytorch as pl
import torch

from aneurysm.cache.cache import Cache
from aneurysm.errors import CacheError, InterruptedRunError
from aneurysm.metrics import Score
from aneurysm.training.callbacks.ema import Ema
from aneurysm.training.callbacks.loss_watch import LossWatch
from aneurysm.training.checkpoint import model_entries, read_file, save_atomically
from aneurysm.training.epoch_files import EpochFiles
from aneurysm.training.metrics_table import EpochRow, score_row
from aneurysm.training.module import PatchModule
from aneurysm.training.progress import StepFacts, TrainingProgress
from aneurysm.training.run_folder import RunFolder
from aneurysm.training.split import Split
from aneurysm.training.stop_signal import StopSignal, gathered
from aneurysm.training.timed_loader import TimedBatches
from aneurysm.training.validation import (
    Predictions,
    ValidationStoppedError,
    predict_series,
    score_predictions,
)

_log: Final = logging.getLogger(__name__)
_TELL_IDLE_ABOVE: Final = 0.05
_TELL_IDLE_AFTER_S: Final = 10.0
"""In less time most of the waiting is for workers that start."""


class EpochEnd(pl.Callback):
    """
    Validates, writes and saves after each epoch; saves and leaves after the step in which a signal came.

    ``last.ckpt`` is saved after an epoch's validation. If that is left in its midst, it is saved with the epoch
    *pending*, and a run that goes on begins with the validation.

    Parameters
    ----------
    batches, ema, watch, stop
        What else follows the steps; both callbacks stand before this one in the trainer's list.
    progress
        To tell.
    workers
        Processes that read in validation.
    """

    def __init__(
        self,
        folder: RunFolder,
        cache: Cache,
        split: Split,
        *,
        batches: TimedBatches,
        ema: Ema,
        watch: LossWatch,
        stop: StopSignal,
        progress: TrainingProgress,
        workers: int,
    ) -> None:
        self._folder, self._cache, self._split = folder, cache, split
        self._batches, self._ema, self._watch, self._stop = batches, ema, watch, stop
        self._progress, self._workers = progress, workers
        self._pending: EpochRow | None = None
        self._metrics: dict[str, float | None] = {}
        self._epoch = 0
        self._best: tuple[str, float] | None = None
        self._files: EpochFiles | None = None
        self._tell_all = True

    # ---- as Lightning calls it -------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: pl.Trainer, pl_module: PatchModule) -> None:  # type: ignore[override]
        """Open the tables; validate, if the run that goes on was left before."""
        if trainer.is_global_zero:
            done = self._epoch - (self._pending is not None)
            terms, steps = list(pl_module.objective.weights), pl_module.config.steps_per_epoch
            self._files = EpochFiles(self._folder, self._cache, self._split, terms, done, steps)
        if self._pending is not None:
            self._finish(trainer, pl_module)
            if trainer.is_global_zero:
                # Lightning has not restored the optimiser yet, and won't if this was the last epoch.
                content = read_file(self._folder.last) | self._entries(pl_module)
                content["callbacks"][self.state_key] = self.state_dict()
                save_atomically(content, self._folder.last)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Catch signals, once Lightning has put its handlers in place."""
        self._stop.catch()
        self._batches.restart()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: PatchModule,  # type: ignore[override]
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,
    ) -> None:
        """Show the step; save now and then; save and leave, if a signal came."""
        config = pl_module.config
        if trainer.is_global_zero:
            self._show(trainer, pl_module, batch_idx)
        stepped = (batch_idx + 1) % config.optimizer.accumulate == 0 and batch_idx + 1 < config.steps_per_epoch
        # With several ranks to ask is to wait, and all have to ask at the same step.
        asked = trainer.world_size == 1 or (batch_idx + 1) % self._watch.every == 0
        leaves = stepped and asked and self._stop.agree(pl_module.device) is not None
        # Of the batches since the last step one is the n-th, 2n-th, ...: with accumulation n may fall between steps.
        due = (batch_idx + 1) % config.save_every < config.optimizer.accumulate
        if leaves or (stepped and due):
            self._watch.read(trainer, pl_module)
            trainer.save_checkpoint(self._folder.last)
        if leaves:
            self._leave()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: PatchModule) -> None:  # type: ignore[override]
        """Validate, write and save."""
        config = pl_module.config
        # First of all: after weights that are no numbers nothing is to be saved.
        self._watch.read(trainer, pl_module)
        parts = gathered(self._watch.means())
        losses = {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}
        self._watch.restart()
        self._epoch = trainer.current_epoch + 1
        self._pending = {
            "epoch": self._epoch,
            "step": self._epoch * config.steps_per_epoch,
            "loss": losses.pop("loss"),
            **{f"loss: {name}": loss for name, loss in losses.items()},
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "patches_per_s": self._batches.patches_per_s * trainer.world_size,
            "idle_share": self._batches.idle_share,
            "train_s": self._batches.elapsed_s,
        }
        try:
            self._finish(trainer, pl_module)
        except (CacheError, InterruptedRunError):
            trainer.save_checkpoint(self._folder.last)
            raise
        trainer.save_checkpoint(self._folder.last)
        if self._stop.agree(pl_module.device) is not None and self._epoch < config.epochs:
            self._leave()
        self._batches.restart()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: PatchModule, checkpoint: dict[str, Any]  # type: ignore[override]  # noqa: ARG002
    ) -> None:  # fmt: skip
        """Add what predicting takes, and what going on takes: where the loader is, and which folds there are."""
        checkpoint.update(self._entries(pl_module))
        checkpoint["folds"] = self._split.digest(self._cache)
        checkpoint["loader"] = self._batches.state_dict()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]  # noqa: ARG002
    ) -> None:  # fmt: skip
        """Let the loader go on from where it was."""
        self._batches.loader.load_state_dict(checkpoint["loader"])

    def state_dict(self) -> dict[str, Any]:
        """Return what is known of the epochs so far."""
        return {
            "epoch": self._epoch,
            "pending": self._pending,
            "metrics": self._metrics,
            "best": None if self._best is None else list(self._best),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the epochs of a checkpoint."""
        self._epoch, self._pending = state_dict["epoch"], state_dict["pending"]
        self._metrics = state_dict["metrics"]
        self._best = None if state_dict["best"] is None else (state_dict["best"][0], state_dict["best"][1])

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Close the event file."""
        if self._files is not None:
            self._files.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Close the event file: Lightning tears nothing down after an error."""
        if self._files is not None:
            self._files.close()

    # ---- the end of an epoch ---------------------------------------------------------------------------------------

    def _finish(self, trainer: pl.Trainer, module: PatchModule) -> None:
        """Validate the pending epoch, and write what came out."""
        assert self._pending is not None
        config, row = module.config, dict(self._pending)
        score: Score | None = None
        predictions: Predictions = {}
        if self._epoch % config.validation.every == 0 or self._epoch == config.epochs:
            started = time.perf_counter()
            predictions = self._predict(trainer, module)
            score = score_predictions(self._cache, predictions)
            row.update(score_row(score), val_s=time.perf_counter() - started)
        self._metrics = {name: _number(row.get(name)) for name in ("score", "present_auc", "site_auc", "loss")}
        best = score is not None and self._is_best(score, row)
        if trainer.is_global_zero:
            self._write(module, row, score, predictions, best=best)
        self._pending = None

    def _predict(self, trainer: pl.Trainer, module: PatchModule) -> Predictions:
        self._ema.agree()
        rank, ranks, held_out = trainer.global_rank, trainer.world_size, self._split.val
        mine = len(held_out[rank::ranks])
        self._progress.validating(0, mine, 0, 0)
        try:
            return predict_series(
                self._ema.model,
                self._cache,
                held_out,
                module.config,
                module.device,
                rank=rank,
                ranks=ranks,
                workers=self._workers,
                stopped=lambda: self._stop.wanted is not None,
                on_progress=lambda done, window, windows: self._progress.validating(done, mine, window, windows),
            )
        except ValidationStoppedError:
            self._stop.agree(module.device)
            raise InterruptedRunError(self._stop.wanted or 0) from None

    def _is_best(self, score: Score, row: EpochRow) -> bool:
        """Compare by score; without one by the AUC of present; without that by the training loss."""
        for kind, value in (("score", score.score), ("present_auc", score.present_auc)):
            if value is not None:
                found = (kind, value)
                break
        else:
            found = ("loss", -float(row["loss"] or 0.0))
        if self._best is not None and self._best[0] == found[0] and self._best[1] >= found[1]:
            return False
        self._best = found
        return True

    def _write(
        self, module: PatchModule, row: EpochRow, score: Score | None, predictions: Predictions, *, best: bool
    ) -> None:
        assert self._files is not None
        self._files.add(row)
        if best:
            save_atomically(self._entries(module), self._folder.best)
            self._files.keep(predictions, epoch=self._epoch)
        # Which labels have no AUC stays the same in all epochs.
        summary = score.summary() if score is not None else "not validated"
        _log.info(
            "epoch %d: loss %.4f; %s", row["epoch"], row["loss"], summary if self._tell_all else summary.split(";")[0]
        )
        self._tell_all = self._tell_all and score is None
        self._progress.epoch(row, score, best=best)
        idle = float(row["idle_share"] or 0.0)
        if idle > _TELL_IDLE_ABOVE and float(row["train_s"] or 0.0) > _TELL_IDLE_AFTER_S:
            _log.warning(
                "the device waited for data %.0f %% of the time: take more --workers (now %d), as long as there are "
                "CPUs; then a cache on a local disk, or of fewer bytes (--spec rsna-1mm-u8)",
                100 * idle,
                self._workers,
            )

    def _entries(self, module: PatchModule) -> dict[str, Any]:
        weights = self._ema.model.state_dict()
        prevalence = self._split.prevalence(self._cache)
        modalities = {self._cache.modalities[i] for i in self._split.train}
        return model_entries(
            weights, module.config, self._cache.spec, self._epoch, self._metrics, prevalence, modalities
        )

    def _leave(self) -> None:
        raise InterruptedRunError(self._stop.wanted or 0)

    def _show(self, trainer: pl.Trainer, module: PatchModule, batch_idx: int) -> None:
        on_gpu = module.device.type == "cuda"
        facts = StepFacts(
            epoch=trainer.current_epoch + 1,
            step=batch_idx + 1,
            loss=self._watch.latest,
            patches_per_s=self._batches.patches_per_s * trainer.world_size,
            idle_share=self._batches.idle_share,
            gpu_gb=torch.cuda.max_memory_allocated(module.device) / 1e9 if on_gpu else None,
        )
        self._progress.step(facts)


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)
