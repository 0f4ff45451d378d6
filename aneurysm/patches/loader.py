"""Plan -> Batches, epoch after epoch: torch's DataLoader, fed with draws, resumable in mid-epoch, for any rank."""

from __future__ import annotations

import logging
import re
import signal
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing.connection import wait
from typing import Any, Final

import torch
from torch.utils.data import DataLoader, Sampler

from aneurysm.cache.cache import Cache
from aneurysm.cache.fetch_ahead import FetchAhead
from aneurysm.errors import LoaderError, SamplingError
from aneurysm.patches.batch import Batch
from aneurysm.patches.dataset import PatchDataset
from aneurysm.patches.plan import Plan, PlannedPatch, Sampling
from aneurysm.patches.views.config import parse_view
from aneurysm.patches.views.view import Box, View
from aneurysm.types import Triple

_log: Final = logging.getLogger(__name__)
_GRACE_S: Final = 60
"""So long a worker goes on after SIGTERM."""
_END_S: Final = 30.0
"""So long a worker may take to end, once it went away: its memory is written to a core dump, on a busy disk."""


class DrawSampler(Sampler[list[PlannedPatch]]):
    """
    Yields the draws of each batch of one epoch, for one rank of several.

    Of each global batch of ``plan.batch_size`` samples a rank gets its contiguous part, so all ranks together draw
    what one alone would.
    """

    def __init__(self, plan: Plan, rank: int, ranks: int) -> None:
        if not 0 <= rank < ranks or plan.batch_size % ranks:
            raise SamplingError(f"rank {rank} of {ranks} can't have its part of batches of {plan.batch_size}")
        self._plan, self._size = plan, plan.batch_size // ranks
        self._offset = rank * self._size
        self.epoch = self.first_step = 0

    def __len__(self) -> int:
        return -(-self._plan.samples // self._plan.batch_size) - self.first_step

    def __iter__(self) -> Iterator[list[PlannedPatch]]:
        draws = islice(self._plan.epoch(self.epoch), self.first_step * self._plan.batch_size, None)
        while batch := list(islice(draws, self._plan.batch_size)):
            yield batch[self._offset : self._offset + self._size]


class PatchLoader:
    """
    Yields the batches of an epoch at each iteration, and goes on to the next epoch.

    The batches are a function of the arguments and the epoch alone: the same for any number of workers, and after
    `load_state_dict`.

    Parameters
    ----------
    cache
        What to draw from.
    patch
        Voxels of a patch along (z, y, x); in place of a view.
    view
        What a sample is: the section ``[view]`` of a configuration, as ``{"name": "slices", "count": 3}``, or a view of
        one's own; see `aneurysm.patches.views`. Of a view of pictures only the balance of ``sampling`` counts.
    batch_size
        Patches a batch, for this rank.
    steps
        Batches an epoch.
    volumes
        Indices of the volumes to draw from; None: all.
    sampling
        The mixture and the balance.
    seed
        Of all randomness.
    workers
        Processes that read; 0 reads in this one.
    rank, ranks
        This process among those that train together.
    vessels
        Read vessel masks, too.
    pin_memory
        Put batches into page-locked memory, from which copies to a GPU run beside its work.
    prefetch
        Batches that each worker reads ahead.
    max_damaged
        So many series may turn out damaged, and be replaced, before the run ends.
    first_epoch
        Number of the first epoch.

    Raises
    ------
    SamplingError
        There is nothing to draw from, or the settings contradict each other.
    UsageError
        There is no such view, or no such setting of it.
    """

    def __init__(
        self,
        cache: Cache,
        *,
        patch: Triple | None = None,
        view: View | Mapping[str, Any] | None = None,
        batch_size: int,
        steps: int,
        volumes: Sequence[int] | None = None,
        sampling: Sampling | None = None,
        seed: int = 0,
        workers: int = 0,
        rank: int = 0,
        ranks: int = 1,
        vessels: bool = False,
        pin_memory: bool = False,
        prefetch: int = 2,
        max_damaged: int = 10,
        first_epoch: int = 0,
    ) -> None:
        if (patch is None) == (view is None):
            raise SamplingError("say what a sample is: either patch=(z, y, x) voxels, or view=")
        if isinstance(view, Mapping):
            view = parse_view(view, cache.spec.spacing_mm)
        view = Box(patch) if view is None and patch is not None else view
        assert view is not None
        if vessels and view.scope == "series":
            raise SamplingError("pictures of a series come without a vessel mask: take patches, view patch3d or slab")
        sampling = (sampling or Sampling()).of(view.scope)
        volumes = range(len(cache)) if volumes is None else volumes
        self.plan = Plan(cache, volumes, sampling, steps * batch_size * ranks, batch_size * ranks, seed)
        self.dataset = PatchDataset(cache, self.plan.volumes, view, sampling, seed, vessels=vessels)
        self._sampler = DrawSampler(self.plan, rank, ranks)
        self._sampler.epoch = first_epoch
        _loaders.add(self)
        self._loader: DataLoader[Any] = DataLoader(
            self.dataset,
            batch_sampler=self._sampler,
            collate_fn=_as_it_is,
            num_workers=workers,
            # Without them each epoch would start with workers that have to open every volume again.
            persistent_workers=workers > 0,
            prefetch_factor=prefetch if workers else None,
            pin_memory=pin_memory,
            worker_init_fn=_start_worker,
            # What reads object stores does not survive a fork.
            multiprocessing_context="spawn" if workers and cache.remote else None,
        )
        self._remote = {v: cache.remote[cache.uids[v]] for v in self.plan.volumes} if cache.remote else {}
        self._ranks = (rank, ranks)
        self._ahead: FetchAhead | None = None
        self._steps, self._max_damaged = steps, max_damaged
        self._step, self._goes_on = 0, True
        self.damaged: set[str] = set()

    def __len__(self) -> int:
        return self._steps

    @property
    def epoch(self) -> int:
        """Number of the epoch that the next iteration yields, or the present one is of."""
        return self._sampler.epoch

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration yield ``epoch`` from its beginning, or what is left of it if it is the present one."""
        if epoch != self._sampler.epoch:
            self._sampler.epoch, self._step = epoch, 0
        self._goes_on = True

    def state_dict(self) -> dict[str, int]:
        """Return where the loader is: batches that it has handed out count, those read ahead don't."""
        plan = self.plan
        drawn_from = repr((plan.samples, plan.sampling, plan.volumes))
        return {
            "epoch": self.epoch,
            "step": self._step,
            "seed": plan.seed,
            "batch_size": plan.batch_size,
            "drawn_from": zlib.crc32(drawn_from.encode()),
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """
        Go on from where ``state`` was taken, with any number of workers, and of ranks as long as the batch is the same.

        Raises
        ------
        SamplingError
            The state is of another seed or batch size, or of other steps, sampling or volumes: the same patches could
            not come.
        """
        here = self.state_dict()
        if differing := [k for k in ("seed", "batch_size") if state[k] != here[k]]:
            differences = ", ".join(f"{k} {state[k]}, now {here[k]}" for k in differing)
            raise SamplingError(f"the run to be resumed had {differences}: it would go on with other patches")
        if state.get("drawn_from", here["drawn_from"]) != here["drawn_from"]:
            raise SamplingError(
                "the run to be resumed had other steps an epoch, another sampling or other volumes: it would go on "
                "with other patches"
            )
        self._sampler.epoch, self._step, self._goes_on = state["epoch"], state["step"], True

    def __iter__(self) -> Iterator[Batch]:
        # An epoch that was left, or is through, is followed by the next.
        if not self._goes_on or self._step >= self._steps:
            self._sampler.epoch, self._step = self._sampler.epoch + 1, 0
        self._goes_on = False
        self._sampler.first_step = self._step
        self._fetch_ahead()
        with raise_loader_errors():
            batches = iter(self._loader)
            while (batch := _next(batches)) is not None:
                self._note_damage(batch)
                self._step += 1
                if self._ahead is not None:
                    self._ahead.reached(self.epoch * self._steps + self._step)
                yield batch

    def close(self) -> None:
        """
        End the workers.

        Without it a run that ends by an error would end them when Python exits, by SIGTERM, for which they take time.
        """
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None
        # They outlive an epoch with the loader's iterator, for whose end torch has no public way.
        iterator: Any = self._loader._iterator  # noqa: SLF001
        if iterator is not None and self._loader.num_workers:
            with suppress(RuntimeError):  # torch's signal handler tells of a dead worker wherever this thread is
                iterator._shutdown_workers()  # noqa: SLF001
            for worker in iterator._workers:  # noqa: SLF001
                # One that waits for a lock which a dead one held: its SIGTERM is only a deadline (see _start_worker).
                # They write nothing, so that nothing is lost.
                worker.kill()
            self._loader._iterator = None  # noqa: SLF001

    def _fetch_ahead(self) -> None:
        """Let volumes of a cache in an object store be fetched from where the loader is, on into later epochs."""
        at = self.epoch * self._steps + self._step
        if self._ahead is not None and self._ahead.start > at:
            self._ahead.close()  # the loader was set back
            self._ahead = None
        if self._ahead is None and self._remote:
            self._ahead = FetchAhead(self._remote, self._walk(self.epoch, self._step), self._ranks[1], start=at)
        if self._ahead is not None:
            self._ahead.reached(at)

    def _walk(self, epoch: int, step: int) -> Iterator[tuple[int, list[int]]]:
        """Yield steps, counted over all epochs, and the volumes that their batches are drawn from."""
        while True:
            sampler = DrawSampler(self.plan, *self._ranks)
            sampler.epoch, sampler.first_step = epoch, step
            for i, draws in enumerate(sampler, step):
                yield epoch * self._steps + i, [draw.volume for draw in draws]
            epoch, step = epoch + 1, 0

    def _note_damage(self, batch: Batch) -> None:
        for problem in batch.damaged:
            uid = problem.split(":", 1)[0]
            if uid not in self.damaged:
                self.damaged.add(uid)
                _log.warning("series %s can't be read, and is replaced by another. Run aneurysm verify", problem)
        if len(self.damaged) > self._max_damaged:
            raise LoaderError(
                f"{len(self.damaged)} series can't be read, more than the {self._max_damaged} that are let pass. "
                f"Run aneurysm verify. The first: {min(self.damaged)}"
            )


def _next(batches: Iterator[Batch]) -> Batch | None:
    try:
        return next(batches, None)
    except (ConnectionError, EOFError) as error:
        # A worker that dies while it hands over a batch.
        raise RuntimeError(f"DataLoader worker went away: {type(error).__name__}") from error


@contextmanager
def raise_loader_errors() -> Iterator[None]:
    """
    Turn what torch raises when a worker fails into a `LoaderError`.

    It notices a dead worker by a signal, whose handler raises in whatever the main thread does at that moment: not
    only in the loader, which is why a training loop should stand within this, too.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise LoaderError(f"a worker that reads patches {_death(str(error))}") from error
    except LoaderError as error:
        # torch puts the whole traceback of a worker into the message; the last line of it is ours.
        message = str(error).strip().splitlines()[-1]
        raise LoaderError(message.removeprefix("aneurysm.errors.LoaderError: ")) from None


def _death(message: str) -> str:
    """Return how a worker ended, by what torch says of it, and what to do."""
    ended = next(
        (s for s in signal.Signals if f"killed by signal: {signal.strsignal(s)}" in message), _signal_of(message)
    )
    match ended:
        case signal.SIGALRM:
            return (
                f"was ended, since it was sent SIGTERM {_GRACE_S} s ago and the run has not stopped since: it was the "
                "run that should have been sent it"
            )
        case signal.SIGBUS:
            return "was ended by SIGBUS: shared memory is full (/dev/shm; docker run --shm-size), or a disk fails"
        case signal.SIGKILL | None:
            return (
                f"died ({message}). Out of memory is the usual cause: take fewer workers, smaller batches, or more "
                "shared memory (/dev/shm; docker run --shm-size)"
            )
    return f"was ended by {ended.name}, which somebody sent it, or a crash in a library"


_loaders: Final[weakref.WeakSet[PatchLoader]] = weakref.WeakSet()
"""Of this process: their workers are asked how they ended."""


def _signal_of(message: str) -> signal.Signals | None:
    """Return the signal that ended a worker of which torch says no more than its number; None if it was none."""
    workers = [w for loader in list(_loaders) for w in getattr(loader._loader._iterator, "_workers", ())]  # noqa: SLF001
    numbers = re.findall(r"\d+", message)
    if not numbers and workers:  # it went away in the midst of a batch: its end may take a moment longer
        wait([worker.sentinel for worker in workers], timeout=_END_S)
    for worker in workers:
        if (str(worker.pid) in numbers or not numbers) and (worker.exitcode or 0) < 0:
            return signal.Signals(-worker.exitcode)
    return None


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(_number: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C, and a batch system's SIGTERM, reach every process of the group. The run is to finish its step and save; a
    # worker that dies at once would end it before. One that nobody stops ends by the alarm.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE_S))
