"""A run under watch: every file that it opens for writing is logged, and every row that it leaves is judged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from aneurysm.errors import Reason
from tests.support.cache_paths import volume_path
from tests.support.cache_state import attributes, leftovers, manifest, stored_voxels, tree_digest
from tests.support.command import environment, run_cli

SECONDS_PER_SERIES = 20

WATCH = """
import os, resource, sys

# An absurd size must be refused, not tried: 8 GB of addresses is ample for every honest series here.
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
log = os.open("{log}/" + str(os.getpid()), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
changing = {
    "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
}

def watch(event, args):
    if event == "open":
        name, _, flags = args
        if not isinstance(name, (str, bytes, os.PathLike)):
            return
        if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        names = [name]
    elif event in changing:
        names = [a for a in args[:2] if isinstance(a, (str, bytes, os.PathLike))]
    else:
        return
    for name in names:
        os.write(log, os.fsencode(os.path.abspath(os.fsdecode(name)).replace("\\n", " ")) + b"\\n")

sys.addaudithook(watch)
"""


def run_watched(box: Path, timeout_s: float, workers: int = 2) -> tuple[dict[str, dict[str, str]], str]:
    """Precache box/data into box/cache under watch; return the manifest and what was printed."""
    for name in ("site", "log", "tmp", "cwd"):
        (box / name).mkdir()
    (box / "site" / "sitecustomize.py").write_text(WATCH.replace("{log}", str(box / "log")))
    data = tree_digest(box / "data")
    ran = run_cli(
        *("precache", "--data", box / "data", "--cache", box / "cache", "--workers", workers),
        timeout_s=timeout_s,
        cwd=box / "cwd",
        env=environment(first_path=box / "site", TMPDIR=str(box / "tmp"), PYTHONDONTWRITEBYTECODE="1"),
    )
    assert ran.code in (0, 8), ran.text[-5000:]
    assert "Traceback" not in ran.text, ran.text[-5000:]
    assert tree_digest(box / "data") == data, "the data folder was changed"
    assert sorted(p.name for p in box.iterdir()) == ["cache", "cwd", "data", "log", "site", "tmp"]
    assert list((box / "cwd").iterdir()) == []
    allowed = (f"{box}/cache", f"{box}/tmp", f"{box}/log", "/dev/", "/proc/")
    written = {line for log in (box / "log").iterdir() for line in log.read_text(errors="replace").splitlines()}
    assert written, "the watch saw nothing"
    strange = sorted(name for name in written if not name.startswith(allowed))
    assert not strange, strange
    assert leftovers(box / "cache") == []
    return manifest(box / "cache"), ran.text


def faults_of(cache: Path, uid: str, row: dict[str, str]) -> list[str]:
    """What is wrong with one row, or with the volume it speaks of."""
    faults = []
    if float(row["seconds"] or 0) > SECONDS_PER_SERIES:
        faults.append(f"took {row['seconds']} s")
    if row["status"] != "cached":
        if row["status"] not in ("rejected", "failed"):
            faults.append(f"status {row['status']!r}")
        # A worker that dies of a damaged file would have been the whole run, had there been one worker only.
        bugs = {Reason.INTERNAL_ERROR, Reason.WORKER_KILLED}
        if row["reason"] not in set(Reason) - bugs or not row["detail"]:
            faults.append(f"{row['reason']!r}: {row['detail']!r}")
        return faults
    facts, voxels = attributes(cache, uid), stored_voxels(cache, uid)
    text = (volume_path(cache, uid) / "zarr.json").read_text()
    constants: list[str] = []
    json.loads(text, parse_constant=constants.append)
    if constants:
        faults.append(f"{constants} in the metadata, which is not JSON")
    affine = np.asarray(facts["affine_lps"], float)
    if not np.isfinite(affine).all() or abs(abs(np.linalg.det(affine[:3, :3])) - 1) > 1e-3:
        faults.append(f"affine {affine.tolist()}")
    if np.abs(affine[:3, 3]).max() > 1e5:
        faults.append(f"{np.abs(affine[:3, 3]).max():.3g} mm from the scanner's origin")
    if voxels.min() == voxels.max():
        faults.append(f"all voxels are {voxels.min()}")
    return faults


def check_rows(cache: Path, rows: dict[str, dict[str, str]], stories: dict[str, str]) -> None:
    """Print how the mutants ended, and fail with a line per fault."""
    ends: dict[str, int] = {}
    faults = []
    for uid, row in rows.items():
        end = row["reason"] or row["status"]
        ends[end] = ends.get(end, 0) + 1
        faults += [f"{stories.get(uid, 'a series split off by damage')}\n    {f}" for f in faults_of(cache, uid, row)]
    print(dict(sorted(ends.items(), key=lambda item: -item[1])))
    assert not faults, "\n" + "\n".join(faults)
