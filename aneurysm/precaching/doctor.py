"""examine(): whether a run would work here, before it is begun. A table of findings; nothing is left behind.

Each check runs in a process of its own that is killed when its time is over: on a dead file server a look takes for
ever, and that is what is found then.
"""

from __future__ import annotations

import os
import platform
import secrets
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from aneurysm._version import __version__
from aneurysm.cache.folder import read_spec
from aneurysm.cache.layout import CacheLayout
from aneurysm.dicom.decoder_check import decoder_faults
from aneurysm.errors import AneurysmError, CacheNotFoundError, Reason, SpecError, StoreError, UsageError
from aneurysm.precaching.data_check import Needs, check_memory, check_room, measure_needs
from aneurysm.precaching.finding import Finding, State
from aneurysm.precaching.folder_check import check_folder
from aneurysm.processes.children import Children, ChildTiming, Limits, LostError, Runner
from aneurysm.processes.host import Host, cpu_quota
from aneurysm.processes.threads import usable_cpus
from aneurysm.remote.client import ObjectStore
from aneurysm.remote.scratch import scratch_folder
from aneurysm.remote.url import is_url
from aneurysm.spec import RECIPE_VERSION, load_spec, parse_spec

_START_S: Final = 60.0
"""Seconds that a process may take to import what it needs, where hundreds of tasks begin at once."""
_AT_ONCE: Final = 3
_SLOW_STORE_S: Final = 1.0
_LIBRARIES: Final = ("numpy", "zarr", "numcodecs", "pydicom", "imagecodecs", "python-gdcm", "pyjpegls", "pylibjpeg")
_HUNG: Final = "A dead mount, or a server that is overloaded? See whether `ls` answers there"


@dataclass(frozen=True)
class DoctorTiming:
    """Seconds that checks may take."""

    check_s: float = 10.0
    data_s: float = 30.0
    """Looking through the data: a tree of a million files takes longer, and is not waited for."""
    listen_s: float = 2.0
    """For doctors on other hosts."""


def examine(
    data: str | Path,
    cache: str | Path,
    *,
    spec: str | Path = "rsna-1mm",
    workers: int = 1,
    memory_mb: int | None = None,
    host: Host | None = None,
    processes: Runner | None = None,
    timing: DoctorTiming = DoctorTiming(),
) -> list[Finding]:
    """
    Return what the checks find, in the order of a table. Arguments as of `aneurysm.precaching.run.precache`.

    ``host`` is how the system is asked, if not this one. ``processes`` run the checks: by default some of one's own.
    """
    host = Host() if host is None else host
    if processes is None:
        with Children(ChildTiming(start_s=_START_S, starts=2)) as children:
            return examine(
                data, cache, spec=spec, workers=workers, memory_mb=memory_mb, host=host, processes=children,
                timing=timing,
            )  # fmt: skip
    runner = processes
    with ThreadPoolExecutor(_AT_ONCE, "checks") as pool:

        def begin(name: str, limit_s: float, check: Callable[..., Any], *given: Any) -> Future[Any]:
            return pool.submit(_within, runner, name, limit_s, check, *given)

        needs = begin("data", timing.data_s, _data, data, cache, spec)
        checks = [begin("decoders", timing.check_s, _decoders), begin("spec", timing.check_s, _spec, cache, spec)]
        if is_url(data):
            checks.append(begin("store of the data", timing.check_s, _store, str(data), "store of the data", False))
        if is_url(cache):
            checks.append(begin("store of the cache", timing.check_s, _store, str(cache), "store of the cache", True))
        else:
            checks.append(begin("writing", timing.check_s, check_folder, Path(cache).absolute(), host, timing.listen_s))
        findings = [_versions(), _cpus(workers, host)]
        findings += [finding for check in checks for finding in check.result()]
        found, known = _of_data(needs.result())
        findings.append(found)
        if not is_url(cache):
            # With what the data ask for, if that came out.
            findings += begin("free bytes", timing.check_s, check_room, Path(cache).absolute(), known, host).result()
    return [*findings, check_memory(workers, memory_mb, known, host)]


def _within(runner: Runner, name: str, limit_s: float, check: Callable[..., Any], *given: Any) -> Any:
    """Return what a check finds in a process, or that it found nothing in time."""
    try:
        return runner.run(check, *given, limits=Limits(limit_s))
    except LostError as error:
        if error.reason == Reason.TIMED_OUT:
            return [Finding(name, State.ERROR, f"no answer within {limit_s:g} s", _HUNG)]
        return [Finding(name, State.ERROR, error.detail, "Try it again; a decoder or another library may be broken")]
    except ModuleNotFoundError as error:
        what = f"the package {error.name} is missing"
        return [Finding(name, State.ERROR, what, "Install the package with the extras that this needs")]
    except AneurysmError as error:
        return [Finding(name, State.ERROR, str(error))]
    except OSError as error:
        return [Finding(name, State.ERROR, error.strerror or type(error).__name__)]


def _of_data(answer: Needs | list[Finding]) -> tuple[Finding, Needs | None]:
    if isinstance(answer, Needs):
        done = answer.series - answer.todo
        return Finding("data", State.OK, f"{answer.series} series, of which {done} are done"), answer
    (finding,) = answer
    return finding, None


def _data(data: str | Path, cache: str | Path, spec: str | Path) -> Needs | list[Finding]:
    if not is_url(data) and not Path(data).is_dir():
        return [Finding("data", State.ERROR, f"there is no folder {data}", "Name it with --data; is it mounted here?")]
    try:
        return measure_needs(data, cache, spec)
    except SpecError as error:  # said once is enough
        return [Finding("data", State.UNKNOWN, f"not looked at without a spec: {error}")]


def _versions() -> Finding:
    found = [f"aneurysm {__version__}, recipe {RECIPE_VERSION}, Python {platform.python_version()}"]
    for name in _LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} without a version")
    return Finding("versions", State.OK, ", ".join(found))


def _decoders() -> list[Finding]:
    with scratch_folder() as folder:
        faults = decoder_faults(folder)
    if wrong := {name: fault for name, fault in faults.items() if fault}:
        found = "; ".join(f"{name}: {fault}" for name, fault in wrong.items())
        return [Finding("decoders", State.ERROR, found, "Install the package again, with all that it depends on")]
    return [Finding("decoders", State.OK, f"right for {', '.join(faults)}")]


def _spec(cache: str | Path, spec: str | Path) -> list[Finding]:
    try:
        ours = load_spec(spec)
    except UsageError as error:
        return [Finding("spec", State.ERROR, str(error), "Give another one with --spec")]
    found = f"{ours.name}, digest {ours.digest}"
    try:
        if is_url(cache):
            content = ObjectStore(str(cache)).read("spec.toml").decode("utf-8", "replace")
            theirs = parse_spec(content, "spec.toml", resolved=True)
        else:
            theirs = read_spec(CacheLayout(Path(cache).absolute()))
    except (CacheNotFoundError, FileNotFoundError):
        return [Finding("spec", State.OK, f"{found}; the cache is to be made")]
    if what := theirs.mismatch():
        advice = "Go on with the release that began the cache, or name another folder with --cache"
        return [Finding("spec", State.ERROR, f"of the cache: {what}", advice)]
    if theirs.digest != ours.digest:
        advice = "Name another folder with --cache, or go on with the spec.toml of this one as --spec"
        return [Finding("spec", State.ERROR, f"{found}, the cache is of {theirs.name}, digest {theirs.digest}", advice)]
    return [Finding("spec", State.OK, f"{found}, as the cache")]


def _cpus(workers: int, host: Host) -> Finding:
    usable, quota = usable_cpus(), cpu_quota(host)
    found = f"{workers} workers; {usable} CPUs may be used here"
    if quota is not None:
        found += f", the container's quota is {quota:g}"
    if workers > usable:
        advice = f"--workers {usable}: more take more memory, and are not faster"
        return Finding("CPUs", State.WARNING, found, advice)
    if workers < usable:
        found += f"; {usable - workers} would be idle"
    return Finding("CPUs", State.OK, found)


def _store(url: str, check: str, writing: bool) -> list[Finding]:
    """Ask a store for something, and, of a cache, write an object of its own twice, of which the first is to count."""
    store, key = ObjectStore(url), f".aneurysm-doctor/{os.getpid()}-{secrets.token_hex(4)}"
    started = time.monotonic()
    try:
        store.exists(key)
        first_s, started = time.monotonic() - started, time.monotonic()
        store.exists(key)
        each_s = time.monotonic() - started
        found = f"answers in {1000 * each_s:.0f} ms, the first time in {1000 * first_s:.0f} ms"
        if not writing:
            store.folders("")
        else:
            try:
                twice = store.create(key, b"1"), store.create(key, b"2")
            finally:
                store.delete([key])
            if twice != (True, False):
                found = "an object is written over in spite of a condition (If-None-Match)"
                return [Finding(check, State.ERROR, found, "Use a store that knows conditional writes")]
    except StoreError as error:
        return [Finding(check, State.ERROR, str(error))]
    if each_s > _SLOW_STORE_S:
        return [Finding(check, State.WARNING, found, "Work near the store: each series asks it tens of times")]
    return [Finding(check, State.OK, found)]
