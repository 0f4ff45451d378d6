"""
Ranks: the processes that train together, one for each device: which one this is, how they start, meet and end.

torchrun or Slurm may have started them. Otherwise the first one starts those for further devices, as children. When one
of these dies, or fails, the run ends with its error: the others would wait for it in the next exchange of gradients.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

import torch
import torch.distributed as dist

from aneurysm.errors import AneurysmError
from aneurysm.models.device import check_devices
from aneurysm.processes.children import Child, LostError
from aneurysm.processes.threads import usable_cpus
from aneurysm.training.launcher import launched_process, set_meeting_point

_TIMEOUT: Final = timedelta(minutes=30)
"""Of an exchange between ranks: in validation one may have far fewer windows than another."""
_NOTICE_S: Final = 5.0
"""An exchange fails a moment before it is known which rank has ended."""
_GRACE_S: Final = 20.0
"""On a GPU the first rank would wait for one that has ended without an end of its own."""


@dataclass(frozen=True)
class Ranks:
    """
    One process among those that train together.

    Attributes
    ----------
    rank, size
        Its number, from 0, and how many there are.
    local_rank, local_size
        The same on its machine.
    is_launched
        Whether torchrun or Slurm started them all.
    meeting_point
        Where they find each other, as a URL of torch's; by default the environment says it, as torchrun does.
    threads
        Of torch in each, where there are several.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    is_launched: bool = False
    meeting_point: str = "env://"
    threads: int = 1

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes, and tells."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """Its GPU; without any the CPU."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        # Slurm may show each process a GPU of its own, as the first.
        return torch.device("cuda", self.local_rank % torch.cuda.device_count())


def choose_ranks(devices: int | Literal["auto"]) -> Ranks:
    """
    Return which of the run's processes this is: as it was launched, or the first one, for as many as are asked for.

    Raises
    ------
    UsageError
        The machine has fewer GPUs, or without any fewer CPUs, than were asked for.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    launched = launched_process()
    # A launcher may have bound each process to a CPU of its own.
    if devices != "auto" and (gpus or launched is None):
        check_devices(devices, gpus=gpus)
    if launched is not None and launched.size > 1:
        of_launcher = (launched.rank, launched.size, launched.local_rank, launched.local_size)
        return Ranks(*of_launcher, is_launched=True, threads=_threads(launched.local_size))
    n = max(1, gpus) if devices == "auto" else devices
    return Ranks(size=n, local_size=n, threads=_threads(n))


def _threads(processes: int) -> int:
    return torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else max(1, usable_cpus() // processes)


@contextmanager
def started_ranks(
    ranks: Ranks, function: Callable[[Ranks], None], *, notice_s: float = _NOTICE_S, grace_s: float = _GRACE_S
) -> Iterator[Ranks]:
    """
    Run a function in a child for each rank but the first, beside the block; yield what the first one is to go by.

    If nothing is to be started, since there is but one rank or all are launched already, yield ``ranks`` as it is.

    Parameters
    ----------
    ranks
        The first.
    function
        Takes a child's own `Ranks`; it is pickled.
    notice_s
        Seconds that are waited for a child's error when the block has failed.
    grace_s
        Seconds that the block has to end after a child has failed; then the whole process ends, with one line.

    Raises
    ------
    AneurysmError
        A child died.
    Exception
        What a child raised, if the block fails because of that.
    """
    if ranks.size == 1 or ranks.is_launched:
        yield ranks
        return
    folder = TemporaryDirectory(prefix="aneurysm-ranks-")
    ranks = replace(ranks, meeting_point=Path(folder.name, "store").as_uri())
    has_ended = threading.Event()
    others = [
        _OtherRank(replace(ranks, rank=n, local_rank=n), function, has_ended, grace_s) for n in range(1, ranks.size)
    ]
    try:
        for other in others:
            other.start()
        yield ranks
        for other in others:
            other.join()
    except AneurysmError:
        raise
    except Exception as error:
        if (cause := _cause(others, notice_s)) is not None:
            raise cause from error
        raise
    finally:
        has_ended.set()
        for other in others:
            other.child.stop()
        for other in others:
            other.child.wait()
        folder.cleanup()


class _OtherRank(threading.Thread):
    """Another rank's process, in which the function runs, and the thread that waits for its end."""

    def __init__(
        self, ranks: Ranks, function: Callable[[Ranks], None], has_ended: threading.Event, grace_s: float
    ) -> None:
        super().__init__(name=f"rank {ranks.rank}", daemon=True)
        self.child = Child()
        self.error: Exception | None = None
        self._ranks, self._function = ranks, function
        self._has_ended, self._grace_s = has_ended, grace_s

    def run(self) -> None:
        try:
            self.child.run(_run_rank, self._function, self._ranks)
        except LostError as error:
            self.error = AneurysmError(f"rank {self._ranks.rank} of {self._ranks.size}: {error.detail}")
        except Exception as error:  # noqa: BLE001 - the first rank raises it
            self.error = error
        # With it its connections go: the others need not wait for what it will not send.
        self.child.stop()
        if self.error is not None and not self._has_ended.wait(self._grace_s):
            # The first rank is held in a call of the device's library, where no exception reaches it.
            sys.stderr.write(f"aneurysm: {self.error}\n")
            sys.stderr.flush()
            os._exit(1)


def _run_rank(function: Callable[[Ranks], None], ranks: Ranks) -> None:
    try:
        function(ranks)
    except Exception as error:
        if not isinstance(error, AneurysmError):
            error.add_note(f"in rank {ranks.rank}: {traceback.format_exc()}")  # which pickling would leave out
        raise


def _cause(others: Sequence[_OtherRank], notice_s: float) -> Exception | None:
    """Return the error of the first of the other ranks that has one by now, or in a moment."""
    end = time.monotonic() + notice_s
    while time.monotonic() < end:
        for other in others:
            if other.error is not None:
                return other.error
        time.sleep(0.05)
    return None


@contextmanager
def joined(ranks: Ranks) -> Iterator[None]:
    """Let torch's collectives reach all ranks within; each has a share of the machine's CPUs. One rank needs none."""
    device = ranks.device
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ranks.size == 1:
        yield
        return
    if ranks.is_launched:
        set_meeting_point()
    threads = torch.get_num_threads()
    torch.set_num_threads(ranks.threads)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        ranks.meeting_point,
        rank=ranks.rank,
        world_size=ranks.size,
        timeout=_TIMEOUT,
        device_id=device if device.type == "cuda" else None,
    )
    try:
        yield
    finally:
        dist.destroy_process_group()
        torch.set_num_threads(threads)


def gathered(value: Any) -> list[Any]:
    """Return the values of all ranks, in their order; of this process alone if there is no other."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
