"""EpochFiles: what an epoch leaves in the run's folder beside checkpoints: metrics, curves, predictions, the log."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from crc32c import crc32c

from aneurysm.cache.cache import Cache
from aneurysm.metrics import Score
from aneurysm.training.metrics_table import EpochRow, MetricsTable
from aneurysm.training.run_folder import RunFolder
from aneurysm.training.split import Split
from aneurysm.training.validation import PredictionsByVolume, write_predictions

_IDLE_WARNING_SHARE: Final = 0.05
_IDLE_WARNING_AFTER_S: Final = 10.0
"""In less time most of the waiting is for workers that start."""
_log: Final = logging.getLogger(__name__)


class EpochFiles:
    """
    ``metrics.csv``, ``tensorboard/``, ``predictions_val.csv``; and lines of the log.

    Parameters
    ----------
    terms
        Of the loss.
    done, steps_per_epoch
        Epochs that the run has behind it, of this many steps. What is there of later ones was lost with a crash.
    workers
        Processes that read, of which the log may advise more.
    """

    def __init__(
        self,
        folder: RunFolder,
        cache: Cache,
        split: Split,
        terms: Sequence[str],
        done: int,
        steps_per_epoch: int,
        workers: int,
    ) -> None:
        self._folder, self._cache, self._split, self._workers = folder, cache, split, workers
        self._has_score = False
        modalities = sorted({cache.modalities[i] for i in split.val})
        self._table = MetricsTable(folder.metrics, terms, modalities, done)
        # Steps that were lost with a crash are not drawn twice.
        purge = done * steps_per_epoch + 1 if done else None
        self._events = _Events(folder.tensorboard, purge)

    def add(self, row: EpochRow, score: Score | None, best: PredictionsByVolume | None) -> None:
        """
        Write what an epoch gave.

        Parameters
        ----------
        row
            Its numbers.
        score
            None if it was not validated.
        best
            Its predictions, if it is the best so far.
        """
        self._table.add(row)
        for name, value in row.items():
            if value is not None and name not in ("epoch", "step"):
                tag = name.replace(": ", "/") if ": " in name else f"epoch/{name}"
                self._events.add(tag, value, int(row["step"] or 0))
        if best is not None:
            folds = dict(enumerate(self._split.folds.tolist()))
            write_predictions(self._folder.predictions, self._cache, best, folds, epoch=int(row["epoch"] or 0))
        self._add_to_log(row, score)

    def _add_to_log(self, row: EpochRow, score: Score | None) -> None:
        summary = "not validated" if score is None else score.summary()
        if self._has_score:
            summary = summary.split(";")[0]  # which labels have no AUC stays the same in all epochs
        self._has_score |= score is not None
        _log.info("epoch %d: loss %.4f; %s", row["epoch"], row["loss"], summary)
        idle = float(row["idle_share"] or 0.0)
        if idle > _IDLE_WARNING_SHARE and float(row["train_s"] or 0.0) > _IDLE_WARNING_AFTER_S:
            _log.warning(
                "the device waited for data %.0f %% of the time: take more --workers (now %d), as long as there are "
                "CPUs; then a cache on a local disk, or of fewer bytes (--spec rsna-1mm-u8)",
                100 * idle,
                self._workers,
            )

    def close(self) -> None:
        """Close the event file."""
        self._events.close()


class _Events:
    """
    An event file of TensorBoard's, written at once.

    Its own writer does so in a thread, which answers a full disk with a traceback and does not end the run; and it
    takes a second to load.
    """

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
        self._file = (folder / name).open("wb", buffering=0)
        self._write(Event(file_version="brain.Event:2"))
        if purge_step is not None:
            self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, tag: str, value: float, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._write(Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)])))

    def close(self) -> None:
        self._file.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        self._file.write(length + _masked_crc(length) + content + _masked_crc(content))


def _masked_crc(content: bytes) -> bytes:
    """Return the checksum of a TFRecord's part, as TensorFlow's lib/io/record_writer.h masks it."""
    crc = crc32c(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
