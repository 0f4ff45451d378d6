"""What must not change while code is moved: hashes of caches, of a training run, and of what it predicts.

``--check`` builds everything again and compares it with golden.json; ``--write`` keeps it. Everything is asked of the
command line, so that no move of a module touches this file. Caches are the same on any machine. Losses and weights are
those of one build of torch on one kind of processor, and are compared only where both are the same.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from aneurysm.labels import LABELS
from benchmarks.options import work_folder
from benchmarks.table import machine

_GOLDEN = Path(__file__).parent / "golden.json"
_ROOT = Path(__file__).parents[1]
_REAL_UID = "1.2.826.0.1.3680043.8.498.78"
_CONFIG = """\
model = "cnn3d"
modality = ["CTA", "MRA"]
patch = [48, 48, 48]
batch_size = 4
epochs = 2
steps_per_epoch = 12
folds = 3
seed = 7
workers = 1

[sampling]
lesion = 0.5
vessel = 0.35
foreground = 0.15
uniform = 0.0

[validation]
overlap = 0.25
batch_size = 8
"""
"""Every augmentation is on, as it is by default."""
_VERSIONS = {"format_version", "built_by", "builder_hash", "voxel_hash"}
"""Entries of a volume that say which version it is of, and the hash that may cover them."""


def run(*arguments: object, codes: Iterable[int] = (0,)) -> None:
    """Run one command; raise `RuntimeError` with what it wrote if it ends otherwise."""
    env = os.environ | {"ANEURYSM_PATIENT_KEY": "golden", "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-m", "aneurysm", *map(str, arguments)], cwd=_ROOT, env=env, capture_output=True, text=True
    )
    if ran.returncode not in codes:
        raise RuntimeError(f"{arguments} ended with {ran.returncode}:\n{ran.stdout[-2000:]}{ran.stderr[-4000:]}")


def unpack_real(real: Path, data: Path) -> None:
    """Put every real series below ``real`` into ``data`` as the RSNA layout has it, numbered by the order of names."""
    sources = {p for p in real.rglob("*") if p.name == "dicom.tar.xz"}
    folders = {p.parent for p in real.rglob("*") if p.is_file() and _is_dicom(p)}
    # Files of one series may lie in folders below "dicom".
    folders = {next((f for f in p.parents if f.name == "dicom"), p) if p.name != "dicom" else p for p in folders}
    for number, source in enumerate(sorted(sources | folders)):
        target = data / "series" / f"{_REAL_UID}.{number}"
        target.mkdir(parents=True)
        if source.is_dir():
            for i, path in enumerate(sorted(p for p in source.rglob("*") if p.is_file())):
                shutil.copy(path, target / f"{i:05}.dcm")
            continue
        with tarfile.open(source) as tar:
            tar.extractall(target, filter="data")


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def hashes_of_cache(cache: Path) -> dict[str, str]:
    """Return, by series: the hash of the volume's files (zarr.json too), or why there is none. And that of tables."""
    rows = _rows(cache / "manifest.csv")
    # By the clock, and the sum that guards it; what says which version of a program or format it is; and bytes of that.
    volatile = {"seconds", "seconds_check", "bytes_out", *_VERSIONS}
    stable = [{k: v for k, v in row.items() if k not in volatile} for row in rows]
    # Wherever they lie in it.
    volumes = {path.name.removesuffix(".zarr"): path for path in (cache / "volumes").rglob("*.zarr")}
    found = {row["series_uid"]: row["reason"] or _hash_of_tree(volumes[row["series_uid"]]) for row in rows}
    return found | {
        "manifest.csv": _sha(json.dumps(stable).encode()),
        "lesions.csv": _sha((cache / "lesions.csv").read_bytes()),
    }


def _hash_of_tree(root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        content = path.read_bytes()
        if path == root / "zarr.json":
            document = json.loads(content)
            own = document["attributes"]["aneurysm"]
            document["attributes"]["aneurysm"] = {k: v for k, v in own.items() if k not in _VERSIONS}
            content = json.dumps(document).encode()
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + _sha(content).encode())
    return digest.hexdigest()[:32]


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def hash_of_weights(checkpoint: Path) -> str:
    """Return the hash of all tensors of a model, by the order of their names."""
    weights = torch.load(checkpoint, weights_only=True, map_location="cpu")["state_dict"]
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].numpy().tobytes())
    return digest.hexdigest()[:32]


def answers(path: Path) -> dict[str, list[str]]:
    """Return the 14 probabilities of each series in a table of predictions, as text."""
    return {row["series_uid"]: [row.get(f"p: {n}") or row[n] for n in LABELS] for row in _rows(path)}


def losses(run_folder: Path) -> dict[str, list[str]]:
    """Return the columns of metrics.csv in which something is measured, and no clock has a part."""
    rows = _rows(run_folder / "metrics.csv")
    columns = [c for c in rows[0] if c in ("step", "score") or c.startswith(("loss", "learning_rate", "auc: "))]
    return {column: [row[column] for row in rows] for column in columns if any(row[column] for row in rows)}


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def build(work: Path, real: Path | None) -> dict[str, Any]:
    """Run everything in ``work``, an empty folder; return what is to stay as it is."""
    golden: dict[str, Any] = {"machine": numerics(), "caches": {}}
    run("phantom", work / "data", "--series", 24, "--size", "tiny", "--seed", 3, "--workers", 2)
    run("precache", "--data", work / "data", "--cache", work / "cache", "--workers", 2, codes=(0, 8))
    golden["caches"]["phantom"] = hashes_of_cache(work / "cache")
    if real is not None and real.is_dir():
        unpack_real(real, work / "real")
        run("precache", "--data", work / "real", "--cache", work / "real-cache", "--workers", 2, codes=(0, 8))
        golden["caches"]["real"] = hashes_of_cache(work / "real-cache")
    (work / "config.toml").write_text(_CONFIG)
    train = ("train", "--cache", work / "cache", "--config", work / "config.toml")
    run(*train, "--out", work / "run")
    # The schedule is another than if it had been asked for two epochs at once, and so are the weights.
    run(*train, "--out", work / "resumed", "--epochs", 1)
    run("train", "--cache", work / "cache", "--out", work / "resumed", "--resume", "--epochs", 2)
    run("predict", work / "run", work / "data" / "series", "--out", work / "predicted.csv", codes=(0, 8))
    golden["training"] = {
        "losses": losses(work / "run"),
        "weights": hash_of_weights(work / "run" / "checkpoints" / "last.ckpt"),
        "resumed": hash_of_weights(work / "resumed" / "checkpoints" / "last.ckpt"),
        "validated": answers(work / "run" / "predictions_val.csv"),
        "predicted": answers(work / "predicted.csv"),
    }
    return golden


def numerics() -> dict[str, str]:
    """Return what sums in floating point depend on."""
    return {
        "torch": torch.__version__,
        "processor": machine(())["processor"],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> list[str]:
    """Return where two such results differ; nothing of what only one of them has, a folder of real data, say."""
    found = []
    for key in then:
        here = f"{where}/{key}"
        if key not in now:
            if where != "/caches":
                found.append(f"{here}: is missing")
        elif isinstance(then[key], dict):
            found += differences(then[key], now[key], here)
        elif then[key] != now[key]:
            found.append(f"{here}: was {str(then[key])[:200]}, is {str(now[key])[:200]}")
    return found + [f"{where}/{key}: is new" for key in now if key not in then and where != "/caches"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, help="where data and caches are kept (about 200 MB)")
    parser.add_argument("--real", type=Path, default=_ROOT.parent / "shared" / "data" / "real", help="real series")
    parser.add_argument("--write", action="store_true", help=f"keep the result in {_GOLDEN.name}")
    parser.add_argument("--check", action="store_true", help=f"compare the result with {_GOLDEN.name} (the default)")
    options = parser.parse_args()
    work = work_folder(options) / "golden"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    now = build(work, options.real.absolute())
    if options.write:
        _GOLDEN.write_text(json.dumps(now, indent=1) + "\n")
        return 0
    then = json.loads(_GOLDEN.read_text())
    if then["machine"] != now["machine"]:
        print(f"losses and weights are not compared: they are of {then['machine']}, this is {now['machine']}")
        then, now = ({"caches": each["caches"]} for each in (then, now))
    found = differences(then, now)
    for line in found:
        print(line)
    print(f"{len(found)} differences")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
