"""EpochFiles: what an epoch leaves in the run's folder beside checkpoints: metrics, curves, the best's predictions."""

from __future__ import annotations

from collections.abc import Sequence

from aneurysm.cache.catalog import Cache
from aneurysm.training.metrics_table import MetricsTable, Row
from aneurysm.training.run_folder import RunFolder
from aneurysm.training.split import Split
from aneurysm.training.validation import Predictions, write_candidates, write_predictions


class EpochFiles:
    """
    ``metrics.csv``, ``tensorboard/``, ``predictions_val.csv`` and ``candidates_val.csv``.

    Parameters
    ----------
    terms
        Of the loss.
    done, steps_per_epoch
        Epochs that the run has behind it, of so many steps. What is there of later ones was lost with a crash.
    """

    def __init__(
        self, folder: RunFolder, cache: Cache, split: Split, terms: Sequence[str], done: int, steps_per_epoch: int
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder, self._cache, self._split = folder, cache, split
        modalities = sorted({cache.modalities[i] for i in split.val})
        self._table = MetricsTable(folder.metrics, terms, modalities, done)
        # Steps that were lost with a crash are not drawn twice.
        purge = done * steps_per_epoch + 1 if done else None
        self._writer = SummaryWriter(folder.tensorboard, purge_step=purge)

    def add(self, row: Row) -> None:
        """Add the numbers of an epoch."""
        self._table.add(row)
        for name, value in row.items():
            if value is not None and name not in ("epoch", "step"):
                tag = name.replace(": ", "/") if ": " in name else f"epoch/{name}"
                self._writer.add_scalar(tag, value, int(row["step"] or 0))
        self._writer.flush()

    def keep(self, predictions: Predictions, *, epoch: int) -> None:
        """Write the predictions of the best epoch so far."""
        folds = dict(enumerate(self._split.folds.tolist()))
        write_predictions(self._folder.predictions, self._cache, predictions, folds, epoch=epoch)
        write_candidates(self._folder.candidates, self._cache, predictions)

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()
