"""PatchLoader -> the batches of an epoch, and how long the device had nothing to do for want of them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from aneurysm.patches.batch import Batch
from aneurysm.patches.loader import PatchLoader


class TimedBatches:
    """
    The loader's batches.

    On a GPU the time spent waiting for the loader says little: the GPU still works on what it was given. So an event is
    put behind each step's work; only if the GPU has passed it, it is idle. Asking it costs no synchronisation.

    Attributes
    ----------
    idle_s, patches
        Seconds that the device waited, and patches that it got, since `restart`.
    """

    def __init__(self, loader: PatchLoader, device: torch.device) -> None:
        self.loader, self._device = loader, device
        self.idle_s, self.patches = 0.0, 0
        self._event: torch.cuda.Event | None = None
        self._started = time.perf_counter()

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        while True:
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
            self.patches += len(batch)
            yield batch
            if self._device.type == "cuda":
                self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._event.record()

    def state_dict(self) -> dict[str, int]:
        """Return where the loader is. Lightning warns of loaders that lack this; it asks for it in mid-epoch only."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the loader go on from there."""
        self.loader.load_state_dict(state)

    def _idle(self) -> bool:
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def restart(self) -> None:
        """Begin to count anew."""
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
