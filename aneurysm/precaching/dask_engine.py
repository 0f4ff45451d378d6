"""dask_engine(): series built by the workers of a running Dask cluster, by the same code as on one machine.

Dask says where a series is built, and moves it when a worker dies. The worker itself only watches: it builds in a child
process (processes/children.py), so that what happens to one series rarely happens to the worker.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Final
from uuid import uuid4

from distributed import CancelledError, Client, Future, KilledWorker, as_completed

from aneurysm._version import __version__
from aneurysm.cache.layout import CacheLayout
from aneurysm.documents import read_json
from aneurysm.errors import AneurysmError, ClusterError, Reason, UsageError, words_of
from aneurysm.precaching.build_series import Outcome, SeriesJob
from aneurysm.precaching.engines import build_in_child
from aneurysm.processes.children import Children, Limits
from aneurysm.spec import RECIPE_VERSION

_GO_ON: Final = "What is cached is complete; run the same command again to go on"
_CONNECT_S: Final = 10.0
_FIRST_WORKER_S: Final = 15.0
_NO_WORKERS_S: Final = 120.0
_POLL_S: Final = 0.05
_LOOK_S: Final = 5.0
_RESULT_S: Final = 10.0
_AHEAD: Final = 500
"""At least this many series are with the scheduler: enough for it to see what a growing cluster could do."""


@contextmanager
def dask_engine(
    address: str | None, scheduler_file: Path | None, data: Path | None, limits: Limits
) -> Iterator[DaskEngine]:
    """
    Connect to the cluster of a scheduler; leave it when the context ends.

    The scheduler then forgets what was not started. What was is finished and published by its worker.

    Raises
    ------
    UsageError
        There is no scheduler, or it has no workers.
    """
    if address is not None and scheduler_file is not None:
        raise UsageError("give either the scheduler's address or the file with it, not both")
    where = address or _address_in(scheduler_file)
    with _quiet(), closing(_client(where)) as client:
        try:
            client.wait_for_workers(1, timeout=_FIRST_WORKER_S)
        except TimeoutError:
            raise UsageError(
                f"the Dask cluster at {where} has no workers, also after {_FIRST_WORKER_S:.0f} s. Start some: "
                f"dask worker {where}"
            ) from None
        yield DaskEngine(client, where, data, limits)


class DaskEngine:
    """Builds series on the cluster that ``client`` is connected to."""

    def __init__(self, client: Client, address: str, data: Path | None, limits: Limits) -> None:
        self._client = client
        self._address = address
        self._data = data
        self._limits = limits

    def build(self, jobs: Sequence[SeriesJob]) -> Iterator[Outcome]:
        """
        Build the series of ``jobs``.

        Raises
        ------
        UsageError
            Workers don't see the data or the cache, or have another version of this package.
        ClusterError
            The scheduler, or for minutes all workers, were lost.
        """
        run = f"aneurysm-{uuid4().hex}"
        todo = iter(enumerate(jobs))
        running: dict[Future, str] = {}
        finished = as_completed(loop=self._client.loop)
        cluster = _Cluster(self._client, self._address)
        while True:
            for i, job in islice(todo, max(0, _AHEAD + 2 * cluster.threads - len(running))):
                # The first element of a tuple is the name of its group; tasks of a large one wait at the scheduler
                # until a worker is free, and not in the queues of workers.
                future = self._client.submit(
                    build_on_worker, job, self._data, (__version__, RECIPE_VERSION), self._limits,
                    key=(run, i), pure=False, priority=-i,
                )  # fmt: skip
                running[future] = job.source.uid
                finished.add(future)
            if not running:
                return
            cluster.look(running)
            batch = finished.next_batch(block=False)
            if not batch:
                time.sleep(_POLL_S)
            for future in batch:
                outcome = _outcome(running[future], future, self._address)
                if outcome is None:
                    finished.add(future)
                    time.sleep(_POLL_S)
                else:
                    del running[future]
                    yield outcome


class _Cluster:
    """Whether the cluster is still there."""

    def __init__(self, client: Client, address: str) -> None:
        self.threads = 0
        self._client = client
        self._address = address
        self._looked = -_LOOK_S
        self._seen = time.monotonic()

    def look(self, running: dict[Future, str]) -> None:
        """Every few seconds, count threads; raise `ClusterError` if nobody will finish what is ``running``."""
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        if self._client.status != "running" or any(future.cancelled() for future in running):
            raise _lost(self._address)
        try:
            self.threads = sum(self._client.sync(self._client.scheduler.ncores, callback_timeout=_LOOK_S).values())
        except (OSError, TimeoutError):
            self.threads = 0
        if self.threads:
            self._seen = now
        elif now - self._seen > _NO_WORKERS_S:
            raise ClusterError(
                f"the Dask cluster at {self._address} has had no workers, or no answer to give, for "
                f"{_NO_WORKERS_S:.0f} s. {_GO_ON}"
            )


def build_on_worker(
    job: SeriesJob, data: Path | None, version: tuple[str, int], limits: Limits, *, visible_s: float = 30.0
) -> Outcome:
    """
    Build one series in a child of this Dask worker.

    The cache is waited for for ``visible_s``: a network file system shows a new file to other nodes after some seconds.

    Raises
    ------
    UsageError
        This worker does not see the data or the cache, or has another version of this package.
    """
    host = socket.gethostname()
    if version != (__version__, RECIPE_VERSION):
        raise UsageError(
            f"the Dask worker on {host} has aneurysm {__version__} (recipe {RECIPE_VERSION}), and this is {version[0]} "
            f"(recipe {version[1]}): the cluster needs the same environment"
        )
    cache = None if job.url else CacheLayout(job.cache).spec
    for path, option, patience_s in ((data, "--data", 0.0), (cache, "--cache", visible_s)):
        if path is not None and not _is_visible(path, patience_s):
            raise UsageError(
                f"the Dask worker on {host} does not see {path}: {option} must be on a file system that all workers "
                "share, under one path"
            )
    return build_in_child(_children, job, limits)


_children = Children()
"""Of this Dask worker; they end by themselves when nothing is to do, and with it."""


def _is_visible(path: Path, patience_s: float) -> bool:
    end = time.monotonic() + patience_s
    while not path.exists():
        if time.monotonic() >= end:
            return False
        time.sleep(1.0)
    return True


def _outcome(uid: str, future: Future, address: str) -> Outcome | None:
    """Return what came of a series; None if that is not known now: its worker or the connection was lost."""
    try:
        outcome: Outcome = future.result(timeout=_RESULT_S)
    except TimeoutError:
        return None
    except KilledWorker as error:
        died = f"{error.allowed_failures + 1} Dask workers that were at it died"
        return Outcome(uid, "failed", Reason.WORKER_KILLED, died)
    except AneurysmError:
        raise
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"the cluster's workers can't load aneurysm {__version__}: {error}. They need the same environment"
        ) from error
    except CancelledError as error:
        raise _lost(address) from error
    except Exception as error:
        if isinstance(error, OSError) and future.status != "error":
            return None  # no error of the series, but of the connection. A lost scheduler is seen when it is looked for
        raise ClusterError(f"the Dask cluster failed at {uid}: {words_of(error)}. {_GO_ON}") from error
    return outcome


def _lost(address: str) -> ClusterError:
    return ClusterError(f"the Dask scheduler at {address} was lost. {_GO_ON}")


def _client(address: str) -> Client:
    try:
        return Client(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no Dask scheduler answers at {address}: {error}. `dask scheduler` starts one, and says its address"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Dask from logging tracebacks of what is said in one line here."""
    log = logging.getLogger("distributed.client")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _address_in(scheduler_file: Path | None) -> str:
    if scheduler_file is None:
        raise UsageError("give the scheduler's address, or the file with it")
    try:
        return str(read_json(scheduler_file)["address"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{scheduler_file} is no scheduler file: {error}. `dask scheduler --scheduler-file FILE` writes one"
        ) from error
