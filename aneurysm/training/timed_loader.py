"""PatchLoader -> the batches of an epoch, step by step, and how long the device had nothing to do for want of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from aneurysm.patches.batch import Batch
from aneurysm.patches.loader import PatchLoader


@dataclass(frozen=True)
class MicroBatch:
    """
    One of the batches whose gradients together make one step of the optimiser.

    Attributes
    ----------
    step
        All of them: the losses' means are over the whole step.
    number
        Which of them this is.
    """

    step: tuple[Batch, ...]
    number: int

    @property
    def batch(self) -> Batch:
        """The batch itself."""
        return self.step[self.number]

    def to(self, device: torch.device) -> MicroBatch:
        """Move all batches of a step with its first; from pinned memory the copy runs beside the device's work."""
        if self.number > 0:
            return self
        return MicroBatch(tuple(batch.to(device, non_blocking=True) for batch in self.step), 0)

    def __len__(self) -> int:
        return len(self.batch)


class TimedBatches:
    """
    The loader's batches, each with the others of its step.

    On a GPU the time spent waiting for the loader says little: the GPU still works on what it was given. So an event is
    put behind each batch's work; only if the GPU has passed it, it is idle. Asking it costs no synchronisation.

    Parameters
    ----------
    loader
        Of the patches.
    device
        That they are for.
    accumulate
        Batches that make a step; the last step of an epoch may have fewer.

    Attributes
    ----------
    idle_s, patches
        Seconds that the device waited, and patches that it got, since `restart`.
    """

    def __init__(self, loader: PatchLoader, device: torch.device, accumulate: int = 1) -> None:
        self.loader, self._device, self._accumulate = loader, device, accumulate
        self.idle_s, self.patches = 0.0, 0
        self._event: torch.cuda.Event | None = None
        self._started = time.perf_counter()
        self._following: list[Batch] = []

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[MicroBatch]:
        batches = iter(self.loader)
        self._following = []
        for _ in range(self._accumulate):
            self._fetch(batches)
        while step := tuple(self._following):
            self._following = []
            for number, batch in enumerate(step):
                self.patches += len(batch)
                yield MicroBatch(step, number)
                if self._device.type == "cuda":
                    self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                    self._event.record()
                # One for each that was handed out: all at once, the device would wait while the loader reads them.
                self._fetch(batches)

    def _fetch(self, batches: Iterator[Batch]) -> None:
        """Add a batch to the step that follows, if the epoch has one left."""
        was_idle = self._idle()
        before = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        waited = time.perf_counter() - before
        if was_idle:
            self.idle_s += waited
        elif self._idle():
            self.idle_s += waited / 2  # it fell idle some time in between
        self._following.append(batch)

    def state_dict(self) -> dict[str, int]:
        """Return where training is: batches that were fetched for the step that follows don't count."""
        state = self.loader.state_dict()
        return {**state, "step": state["step"] - len(self._following)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the loader resume from there."""
        self.loader.load_state_dict(state)

    def _idle(self) -> bool:
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def restart(self) -> None:
        """Begin to count again."""
        self.idle_s, self.patches, self._started = 0.0, 0, time.perf_counter()

    @property
    def elapsed_s(self) -> float:
        """Seconds since `restart`."""
        return time.perf_counter() - self._started

    @property
    def idle_share(self) -> float:
        """The share of the time since `restart` that the device waited for data."""
        return self.idle_s / max(self.elapsed_s, 1e-9)

    @property
    def patches_per_s(self) -> float:
        """Patches per second since `restart`."""
        return self.patches / max(self.elapsed_s, 1e-9)
