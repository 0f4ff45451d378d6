"""Two precache runs at once on one cache, killed at random for minutes; then a rerun, and every byte is looked at.

They are two runs that know nothing of each other; with --array the two tasks of an array, which agree on what each is
to do; with --plan the two parts of a plan, with --steal each helping the other in the end.

Every few seconds some process below one of the two runs is killed, now and then a whole run, which is then started
again. When both runs are through, the cache is finished and checked, and a new round begins with an empty one.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Literal

import psutil

from aneurysm.cache.folder import cached_series, done_series
from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.manifest import read_manifest
from aneurysm.precaching.plan import read_plan
from aneurysm.precaching.plan_folder import plan_folder
from aneurysm.precaching.verify import verify
from benchmarks.options import add_usual_options, work_folder
from benchmarks.table import Target, aims, command_line, machine, write_section
from benchmarks.tiny import series_uid, write_tiny_data

Parts = Literal["", "array", "plan"]
_ROOT = Path(__file__).parents[1]
_RUNS, _WORKERS = 2, 2
_SLICES, _SIZE = 24, 48
_WHOLE = 0.2
"""The share of kills that take a whole run with all its processes."""
_ENDS = (0, 8)
"""Exit codes of a run that came to its end: all cached, or some not, since their workers were killed."""
_KEPT = {
    *(
        "spec.toml",
        "manifest.csv",
        "lesions.csv",
        "volumes",
        "rejected",
        ".patient-key",
        ".patient-key-check",
        ".runs",
        ".tables",
    ),
}

_NOTES = """\
For {seconds:.0f} s a process is killed every {every:g} s on average: one of the workers, and one time in {whole:.0f} a
whole run, which is started again. A cache that is complete is checked, and the next round begins with an empty one.
The check: every series cached once, a row for each, hashes and all columns but the time as in the cache of an
undisturbed run, `aneurysm verify` without a fault, and nothing left over.
"""


class Soak:
    """
    Two runs on the cache below ``work``, and who has been killed.

    ``parts`` says what they are: of no ``""`` parts, the tasks of an ``array``, or those of a ``plan``.
    """

    def __init__(
        self, work: Path, data: Path, series: int, seed: int, *, parts: Parts = "", steal: bool = False
    ) -> None:
        self._parts, self._steal = parts, ["--steal"] * steal
        self.uids = {series_uid(i) for i in range(series)}
        self.counts = Counter[str]()
        self.faults: list[str] = []
        self.slowest_rerun_s = 0.0
        self._data, self._cache, self._reference = data, work / "cache", work / "reference"
        self._log = work / "runs.log"
        self._random = random.Random(seed)
        self._runs: list[subprocess.Popen[bytes] | None] = [None] * _RUNS

    def go_on_for(self, seconds: float, every_s: float) -> None:
        """Kill, and start again, for ``seconds``; on average one kill in ``every_s``; finish and check the cache."""
        if not self._reference.exists():
            assert self._precache(self._reference) == 0
        end = time.monotonic() + seconds
        shutil.rmtree(self._cache, ignore_errors=True)
        try:
            next_kill = time.monotonic() + 2 * every_s
            self._begin()
            while time.monotonic() < end:
                time.sleep(0.05)
                if time.monotonic() > next_kill:
                    self._kill()
                    next_kill = time.monotonic() + self._random.expovariate(1 / every_s)
                self._see_who_ended()
                if self._runs == [None] * _RUNS:
                    self._finish()
                    shutil.rmtree(self._cache)
                    self._begin()
        finally:
            for run in filter(None, self._runs):
                self._kill_whole(run)
        self._finish()

    def _begin(self) -> None:
        if self._parts == "plan":
            assert self._popen("plan", self._cache, "--data", str(self._data), "--shards", str(_RUNS)).wait() == 0
        self._runs = [self._start(place) for place in range(_RUNS)]

    def _start(self, place: int) -> subprocess.Popen[bytes]:
        self.counts["runs started"] += 1
        data = ["--data", str(self._data)]
        if self._parts == "plan":
            return self._popen(
                "precache", self._cache, "--plan", f"{self._cache}/.plan", "--shard", str(place), *self._steal
            )
        if self._parts == "array":
            run = f"round-{self.counts['rounds']}"
            return self._popen("precache", self._cache, *data, "--shard", f"{place}/{_RUNS}", *self._steal, run=run)
        return self._popen("precache", self._cache, *data)

    def _popen(self, command: str, cache: Path, *more: str, run: str = "") -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "aneurysm", command, "--workers", str(_WORKERS), "--cache", cache, *more],
                cwd=_ROOT,
                env=os.environ | ({"ANEURYSM_RUN": run} if run else {}),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _precache(self, cache: Path, *more: str) -> int:
        return self._popen("precache", cache, "--data", str(self._data), *more).wait()

    def _kill(self) -> None:
        run = self._random.choice([r for r in self._runs if r is not None])
        if self._random.random() < _WHOLE:
            self._kill_whole(run)
            self.counts["whole runs killed"] += 1
            place = self._runs.index(run)
            self._runs[place] = self._start(place)
            return
        with suppress(psutil.NoSuchProcess):
            below = psutil.Process(run.pid).children(recursive=True)
            if below:
                self._random.choice(below).kill()
                self.counts["workers killed"] += 1

    def _kill_whole(self, run: subprocess.Popen[bytes]) -> None:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()

    def _see_who_ended(self) -> None:
        for place, run in enumerate(self._runs):
            if run is None or run.poll() is None:
                continue
            if run.returncode not in _ENDS:
                self.faults.append(f"a run ended with exit code {run.returncode}; see {self._log.name}")
            missing = self._of(place) - done_series(CacheLayout(self._cache))
            if run.returncode in _ENDS and missing:
                self.faults.append("a run ended and said nothing, although series were neither cached nor recorded")
            self._runs[place] = self._start(place) if missing or run.returncode not in _ENDS else None

    def _of(self, place: int) -> set[str]:
        """Return the series that a run has done when it ends; of the tasks of an array both together, the last does."""
        if self._parts == "plan":
            return {planned.source.uid for planned in read_plan(plan_folder(self._cache / ".plan")).part(place)}
        ended = sum(run is None or run.poll() is not None for run in self._runs)
        return set() if self._parts == "array" and ended < _RUNS else self.uids

    def _finish(self) -> None:
        """Run once more, and once more for what had been given up; look at what came of it."""
        layout = CacheLayout(self._cache)
        self.counts["rounds"] += 1
        self.counts["series left to the reruns"] += len(self.uids - done_series(layout))
        self.counts["unfinished folders swept by the reruns"] += sum(1 for _ in layout.building.glob("*@*[!k]"))
        started = time.monotonic()
        code = self._precache(self._cache)
        self.slowest_rerun_s = max(self.slowest_rerun_s, time.monotonic() - started)
        rows = read_manifest(layout.manifest)
        given_up = [r for r in rows if r["status"] != "cached"]
        self.counts["series whose worker was killed twice"] += len(given_up)
        if code != (8 if given_up else 0):
            self.faults.append(f"the rerun ended with exit code {code}, with {len(given_up)} series not cached")
        if odd := {r["reason"] for r in given_up} - {"worker_killed"}:
            self.faults.append(f"series are not cached for {', '.join(odd)}")
        if given_up and (code := self._precache(self._cache, "--retry-failed")):
            self.faults.append(f"--retry-failed ended with exit code {code}")
        self.faults += differences(self._cache, self._reference, self.uids)


def differences(cache: Path, reference: Path, uids: set[str]) -> list[str]:
    """Return in words where a finished ``cache`` is not what an undisturbed run made, or has something left over."""
    layout = CacheLayout(cache)
    found = []
    volumes = cached_series(layout)
    if volumes != uids:
        found.append(f"{len(volumes)} volumes, of {len(uids)} series")
    timed = {"seconds": "", "seconds_check": ""}
    rows = [row | timed for row in read_manifest(layout.manifest)]
    expected = [row | timed for row in read_manifest(CacheLayout(reference).manifest)]
    if sorted(r["series_uid"] for r in rows) != sorted(uids):
        found.append(f"{len(rows)} rows in the manifest, of {len(uids)} series")
    if wrong := [r["series_uid"] for r in rows if r not in expected]:
        found.append(f"{len(wrong)} rows are not the reference's, hash and all: the first is {wrong[0]}")
    left = [p.name for p in cache.iterdir() if p.name not in _KEPT]
    left += [p.relative_to(cache).as_posix() for p in layout.runs.glob("*/*") if p.suffix != ".jsonl"]
    left += [p.relative_to(cache).as_posix() for p in cache.rglob("*.tmp")]
    left += [p.relative_to(cache).as_posix() for p in layout.rejected.glob("*/*")]
    if left:
        found.append(f"left over: {', '.join(left[:5])}")
    return found + [f"verify: {fault.where}: {fault.what}" for fault in verify(cache, workers=2).faults]


def main() -> int:
    options = _options()
    os.environ.setdefault("ANEURYSM_PATIENT_KEY", "the same in all caches")  # verify, in this process, wants it, too
    work = work_folder(options) / f"soak-{options.series}"
    shape = f"{_SLICES}x{_SIZE}"
    if not (work / shape).exists():
        shutil.rmtree(work, ignore_errors=True)
        write_tiny_data(work / "data", options.series, _SLICES, _SIZE)
        (work / shape).touch()
    parts: Parts = "plan" if options.plan else "array" if options.array else ""
    soak = Soak(work, work / "data", options.series, options.seed, parts=parts, steal=options.steal)
    soak.go_on_for(options.seconds, options.every)
    text = _section(soak, options)
    print(text)
    if options.write:
        write_section(text)
    return 1 if soak.faults else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=300.0, help="how long processes are killed")
    parser.add_argument("--every", type=float, default=3.0, help="seconds between kills, on average")
    parser.add_argument("--seed", type=int, default=1)
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--plan", action="store_true", help="the runs are the parts of a plan")
    kinds.add_argument("--array", action="store_true", help="the runs are the tasks of an array")
    parser.add_argument("--steal", action="store_true", help="they steal from each other")
    add_usual_options(parser, "1 GB")
    return parser.parse_args()


def _section(soak: Soak, options: argparse.Namespace) -> str:
    what = "the parts of a plan" if options.plan else "the tasks of an array" if options.array else "two runs"
    what += " that steal" if options.steal else ""
    lines = [f"# A soak: {what} on one cache, killed at random", ""]
    lines += [f"- {key}: {value}" for key, value in machine(("joblib", "pydicom", "zarr", "numcodecs")).items()]
    lines += [f"- {options.series} series of {_SLICES} slices of {_SIZE} x {_SIZE} pixels"]
    lines += [f"- {_RUNS} runs at once of `aneurysm precache --workers {_WORKERS}`"]
    lines += [f"- command: `{command_line('benchmarks.soak')}`"]
    lines += [
        "",
        _NOTES.format(seconds=options.seconds, every=options.every, whole=1 / _WHOLE),
        *aims([Target("no fault found", "; ".join(soak.faults[:5]) or "none", not soak.faults)]),
        "| | |",
        "|---|--:|",
        *(f"| {what} | {number} |" for what, number in sorted(soak.counts.items())),
        f"| slowest rerun, s | {soak.slowest_rerun_s:.1f} |",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
