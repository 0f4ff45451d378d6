"""A process for each contender, on one core with one thread, that reads patches when it is told to.

`python -m benchmarks.patch_worker KEY CACHE FOLDER CORE` takes one JSON request a line and answers with one, so that
contenders can take turns, each with its libraries loaded, its files open, and a memory of its own to be measured.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.contenders import peak_mb
from benchmarks.patch_contenders import MemoryMap, Ours, TensorStore, ZarrPython, Zarrs
from benchmarks.patch_data import ROOT, Box, cached_volumes, flush, forget
from benchmarks.patch_frameworks import Monai, NnUNet, NnUNetInt16, NnUNetOpen, NnUNetScaled, TorchIO

if TYPE_CHECKING:
    from aneurysm.types import Triple
    from benchmarks.patch_contenders import Contender

CONTENDERS: dict[str, type[Contender]] = {
    "ours": Ours,
    "zarr-python": ZarrPython,
    "zarrs": Zarrs,
    "tensorstore": TensorStore,
    "nnunet": NnUNet,
    "nnunet-scaled": NnUNetScaled,
    "nnunet-int16": NnUNetInt16,
    "nnunet-open": NnUNetOpen,
    "npy": MemoryMap,
    "monai": Monai,
    "torchio": TorchIO,
}
_ONE_THREAD = (
    "BLOSC_NTHREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS",
)  # fmt: skip


@dataclass(frozen=True)
class Round:
    """What reading one round of patches took, per patch."""

    wall_ms: float
    cpu_ms: float
    read_mb: float  # from the disk, not from the page cache
    peak_mb: float


class Worker:
    """
    The other side of the process: starts it, has it prepare its files, and asks.

    Raises
    ------
    RuntimeError
        From any method, with the last line of what the process had to say.
    """

    def __init__(self, key: str, cache: Path, folder: Path, core: int) -> None:
        self.contender = CONTENDERS[key]
        self._log = folder.with_suffix(".log")
        folder.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | dict.fromkeys(_ONE_THREAD, "1")
        command = [sys.executable, "-m", "benchmarks.patch_worker", key, str(cache), str(folder), str(core)]
        # Files are written by a process of its own, whose peak of memory is not the reader's.
        with self._log.open("w") as log:
            done = subprocess.run([*command, "prepare"], stdout=log, stderr=log, cwd=ROOT, env=environment, check=False)
            if done.returncode:
                raise RuntimeError(self._complaint())
            self._process = subprocess.Popen(
                [*command, "read"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT,
                env=environment,
            )  # fmt: skip
        ready = self._answer()
        self.disk_mb, self.before_mb = float(ready["disk_mb"]), float(ready["before_mb"])

    def check(self, patch: Triple, boxes: list[Box]) -> list[tuple[Box, str]]:
        """Return where the contender read patches (some choose themselves), and a digest of each."""
        answer = self._ask("check", patch, boxes)
        return [(Box(volume, tuple(start)), digest) for volume, start, digest in answer["patches"]]

    def read(self, patch: Triple, boxes: list[Box], *, cold: bool) -> Round:
        """Read a round of patches, perhaps with the files dropped from the page cache before each."""
        return Round(**self._ask("cold" if cold else "warm", patch, boxes))

    def stop(self) -> None:
        """End the process."""
        # Closes the pipes; one that the process has broken may still hold a request.
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()

    def _ask(self, what: str, patch: Triple, boxes: list[Box]) -> dict[str, Any]:
        assert self._process.stdin is not None
        request = {"what": what, "patch": patch, "boxes": [(b.volume, b.start) for b in boxes]}
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise RuntimeError(self._complaint()) from error
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise RuntimeError(self._complaint())
        return dict(json.loads(line))

    def _complaint(self) -> str:
        return (self._log.read_text().strip().splitlines() or ["?"])[-1][:200]


def digest_of(integers: Any) -> str:
    """Return the digest that `Worker.check` gives of a patch of int16."""
    return hashlib.sha256(integers.tobytes()).hexdigest()


def main() -> None:
    key, cache, folder, core, job = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})
    # What a library prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    contender = CONTENDERS[key](cached_volumes(Path(cache)), Path(folder))
    if job == "prepare":
        _prepare(contender)
        return
    contender.open()
    disk_mb = json.loads(_note(contender).read_text())["disk_mb"]
    print(json.dumps({"disk_mb": disk_mb, "before_mb": peak_mb()}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        patch = tuple(request["patch"])
        boxes = [Box(volume, tuple(start)) for volume, start in request["boxes"]]
        answer = _check(contender, patch, boxes) if request["what"] == "check" else None
        answer = answer or _time(contender, patch, boxes, cold=request["what"] == "cold")
        print(json.dumps(answer), file=answers, flush=True)


def _note(contender: Contender) -> Path:
    return contender.folder.with_suffix(".json")


def _prepare(contender: Contender) -> None:
    note = _note(contender)
    of = [volume.metadata.voxel_hash for volume in contender.volumes]
    if note.exists() and json.loads(note.read_text())["of"] == of:
        return
    shutil.rmtree(contender.folder, ignore_errors=True)
    contender.folder.mkdir(parents=True)
    disk_mb = contender.prepare()
    flush(contender.files())
    note.write_text(json.dumps({"of": of, "disk_mb": disk_mb}))


def _check(contender: Contender, patch: Triple, boxes: list[Box]) -> dict[str, Any]:
    patches = []
    for box in boxes:
        got = contender.read(box.volume, box.start, patch)
        at = contender.at or box
        patches.append((at.volume, at.start, digest_of(contender.integers(got, at.volume))))
    return {"patches": patches}


def _time(contender: Contender, patch: Triple, boxes: list[Box], *, cold: bool) -> dict[str, float]:
    files = contender.files() if cold else []
    count = contender.round_of(patch, len(boxes))
    wall = cpu = 0.0
    blocks = resource.getrusage(resource.RUSAGE_SELF).ru_inblock
    for box in (boxes[k % len(boxes)] for k in range(count)):
        if cold:
            contender.unmap()
            forget(files)
        started, started_cpu = time.perf_counter(), time.process_time()
        contender.read(box.volume, box.start, patch)
        wall += time.perf_counter() - started
        cpu += time.process_time() - started_cpu
    blocks = resource.getrusage(resource.RUSAGE_SELF).ru_inblock - blocks
    return {
        "wall_ms": wall / count * 1e3,
        "cpu_ms": cpu / count * 1e3,
        "read_mb": blocks * 512 / count / 1e6,
        "peak_mb": peak_mb(),
    }


if __name__ == "__main__":
    main()
