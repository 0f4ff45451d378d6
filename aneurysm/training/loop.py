"""
TrainingLoop: epoch after epoch, each with its steps, validation, row of metrics and checkpoint.

``last.ckpt`` is saved after an epoch's validation; within an epoch now and then, and when a signal came. If an epoch is
left amid its validation, it is saved with its row unfinished, and a run that resumes begins with the validation.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Final

import torch

from aneurysm.cache.cache import Cache
from aneurysm.errors import CacheError, InterruptedRunError
from aneurysm.metrics import Score
from aneurysm.training.checkpoint import model_entries, save_atomically
from aneurysm.training.config import ResolvedConfig
from aneurysm.training.epoch_files import EpochFiles
from aneurysm.training.learner import Learner
from aneurysm.training.loss_watch import LossWatch
from aneurysm.training.metrics_table import EpochRow, score_row
from aneurysm.training.progress import StepFacts, TrainingProgress
from aneurysm.training.ranks import Ranks, gathered
from aneurysm.training.run_folder import RunFolder
from aneurysm.training.split import Split
from aneurysm.training.stop_signal import StopSignal
from aneurysm.training.timed_loader import TimedBatches
from aneurysm.training.validation import PredictionsByVolume, ValidationStoppedError, predict_series, score_predictions

READ_EVERY: Final = 20
"""Losses are read from the device after this many batches; with several ranks signals are looked for as often."""


class TrainingLoop:
    """
    Trains to the last epoch of the configuration.

    Parameters
    ----------
    learner, batches
        What learns, and from what.
    folder
        Of the run; the first of the ranks writes it.
    cache, split
        What is validated on.
    stop
        Whose signal ends the run after a step.
    progress
        To tell.
    workers
        Processes that read in validation.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        ranks: Ranks,
        learner: Learner,
        batches: TimedBatches,
        *,
        folder: RunFolder,
        cache: Cache,
        split: Split,
        stop: StopSignal,
        progress: TrainingProgress,
        workers: int,
    ) -> None:
        self._config, self._ranks = config, ranks
        self._learner, self._batches = learner, batches
        self._folder, self._cache, self._split = folder, cache, split
        self._stop, self._progress, self._workers = stop, progress, workers
        self._watch = LossWatch(config, min(READ_EVERY, config.steps_per_epoch))
        self._files: EpochFiles | None = None
        self._epoch = 0
        self._row: EpochRow | None = None
        self._metrics: dict[str, float | None] = {}
        self._best: tuple[str, float] | None = None

    def run(self) -> None:
        """
        Train to the end, or to the first error or signal.

        Raises
        ------
        InterruptedRunError
            A signal came; the run is saved.
        """
        with ExitStack() as stack:
            if self._ranks.is_first:
                done = self._epoch - (self._row is not None)
                terms, steps = list(self._learner.module.objective.weights), self._config.steps_per_epoch
                self._files = EpochFiles(self._folder, self._cache, self._split, terms, done, steps, self._workers)
                stack.callback(self._files.close)
            if self._row is not None:
                self._finish_epoch(self._row)
            while self._epoch < self._config.epochs:
                self._row = self._train_epoch()
                self._finish_epoch(self._row)

    def _train_epoch(self) -> EpochRow:
        """Take the steps of an epoch, or what is left of them; return what is known of it without validation."""
        config = self._config
        self._batches.restart()
        first = self._batches.state_dict()["step"] % config.steps_per_epoch
        for number, batch in enumerate(self._batches, first):
            # Randomness follows from the seed and the step's number: nothing of it has to be saved to resume exactly.
            step = self._epoch * config.steps_per_epoch + number
            torch.manual_seed(((config.seed * 1_000_003 + step) * 4096 + self._ranks.rank) % (1 << 63))
            losses = self._learner.step(batch)
            self._watch.add(self._epoch, number, batch, losses)
            self._show(number + 1)
            self._save_within_epoch(number + 1)
        # First of all: after weights that are no numbers nothing is to be saved.
        self._watch.read()
        parts = gathered(self._watch.means())
        means = {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}
        self._watch.restart()
        self._epoch += 1
        return {
            "epoch": self._epoch,
            "step": self._epoch * config.steps_per_epoch,
            "loss": means.pop("loss"),
            **{f"loss: {term}": mean for term, mean in means.items()},
            "learning_rate": self._learner.learning_rate,
            "patches_per_s": self._batches.patches_per_s * self._ranks.size,
            "idle_share": self._batches.idle_share,
            "train_s": self._batches.elapsed_s,
        }

    def _finish_epoch(self, row: EpochRow) -> None:
        """Validate, write the row and what is best so far, and save."""
        config = self._config
        score: Score | None = None
        predictions: PredictionsByVolume = {}
        try:
            if self._epoch % config.validation.every == 0 or self._epoch == config.epochs:
                started = time.perf_counter()
                predictions = self._validate()
                score = score_predictions(self._cache, predictions)
                row = row | score_row(score) | {"val_s": time.perf_counter() - started}
            self._metrics = {name: _number(row.get(name)) for name in ("score", "present_auc", "site_auc", "loss")}
            is_best = score is not None and self._is_best(score, row)
            if self._files is not None:
                if is_best:
                    save_atomically(self._model_entries(), self._folder.best)
                self._files.add(row, score, predictions if is_best else None)
                self._progress.epoch(row, score, best=is_best)
            self._row = None
        except (CacheError, InterruptedRunError):
            self._save()
            raise
        self._save()
        if self._stop.agree(self._learner.device) is not None and self._epoch < config.epochs:
            raise InterruptedRunError(self._stop.wanted or 0)

    def _validate(self) -> PredictionsByVolume:
        """Predict the held-out series, each rank its part, with the mean of the weights."""
        self._learner.ema.broadcast_buffers()
        rank, ranks, held_out = self._ranks.rank, self._ranks.size, self._split.val
        mine = len(held_out[rank::ranks])
        self._progress.validating(0, mine, 0, 0)
        try:
            return predict_series(
                self._learner.ema.model,
                self._cache,
                held_out,
                self._config,
                self._learner.device,
                rank=rank,
                ranks=ranks,
                workers=self._workers,
                stopped=lambda: self._stop.wanted is not None,
                on_progress=lambda done, window, windows: self._progress.validating(done, mine, window, windows),
            )
        except ValidationStoppedError:
            self._stop.agree(self._learner.device)
            raise InterruptedRunError(self._stop.wanted or 0) from None

    def _is_best(self, score: Score, row: EpochRow) -> bool:
        """Compare by score; without one by the AUC of present; without that by the training loss."""
        loss = ("loss", -float(row["loss"] or 0.0))
        measures = (("score", score.score), ("present_auc", score.present_auc))
        measure = next(((name, value) for name, value in measures if value is not None), loss)
        if self._best is not None and self._best[0] == measure[0] and self._best[1] >= measure[1]:
            return False
        self._best = measure
        return True

    def _save_within_epoch(self, done: int) -> None:
        """Save now and then, after ``done`` batches; save and leave, if a signal came."""
        config = self._config
        if done % config.optimizer.accumulate or done == config.steps_per_epoch:
            return  # amid a step, or the epoch's end saves
        # With several ranks to ask is to wait, and all have to ask at the same step.
        asked = self._ranks.size == 1 or done % self._watch.every == 0
        leaves = asked and self._stop.agree(self._learner.device) is not None
        # Of the batches since the last step one is the n-th, 2n-th, ...: with accumulation n may fall between steps.
        if leaves or done % config.save_every < config.optimizer.accumulate:
            self._watch.read()
            self._save()
        if leaves:
            raise InterruptedRunError(self._stop.wanted or 0)

    def _show(self, done: int) -> None:
        device = self._learner.device
        self._progress.step(
            StepFacts(
                epoch=self._epoch + 1,
                step=done,
                loss=self._watch.latest,
                patches_per_s=self._batches.patches_per_s * self._ranks.size,
                idle_share=self._batches.idle_share,
                gpu_gb=torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None,
            )
        )

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Write last.ckpt, which holds all that `load_state_dict` takes."""
        if not self._ranks.is_first:
            return
        content = self._model_entries() | self._learner.state_dict()
        content["loader"] = self._batches.state_dict()
        content["folds"] = self._split.digest(self._cache)
        content["loop"] = {
            "row": self._row,
            "best": None if self._best is None else list(self._best),
            "losses": self._watch.state_dict(),
        }
        save_atomically(content, self._folder.last)

    def _model_entries(self) -> dict[str, Any]:
        return model_entries(
            self._learner.ema.model.state_dict(),
            self._config,
            self._cache.spec,
            self._epoch,
            self._metrics,
            self._split.prevalence(self._cache),
            {self._cache.modalities[i] for i in self._split.train},
        )

    def load_state_dict(self, content: Mapping[str, Any]) -> None:
        """Resume from a checkpoint; the loader has a state of its own."""
        loop = content["loop"]
        self._learner.load_state_dict(content)
        self._watch.load_state_dict(loop["losses"])
        self._epoch, self._metrics, self._row = int(content["epoch"]), dict(content["metrics"]), loop["row"]
        self._best = None if loop["best"] is None else (str(loop["best"][0]), float(loop["best"][1]))


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)
