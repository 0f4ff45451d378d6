"""`make bench-loader`: patches a second of a whole loader, beside those of MONAI and TorchIO.

Every run is a process of its own: it makes its loader, takes the first batch, and then batches for some seconds. Runs
take turns, round after round, so that whatever else the machine does falls on all of them. Patches are of 96^3 voxels,
eight a batch. Prints Markdown; `--write` puts it into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.memory import MemoryWatch
from benchmarks.options import add_usual_options, work_folder
from benchmarks.patch_data import ROOT, cached_volumes, make_cache, that_hold
from benchmarks.table import Target, aims, command_line, machine, write_section

if TYPE_CHECKING:
    from collections.abc import Iterable

PATCH = (96, 96, 96)
BATCH = 8
TITLES = {
    "ours": "ours: integers, targets, coordinates",
    "ours-5000": "ours, from a cache of 5,000 series",
    "ours-float": "ours, turned into float32 model units",
    "monai": "MONAI PersistentDataset + RandSpatialCropd, one patch a volume",
    "monai-8": "MONAI PersistentDataset + RandSpatialCropSamplesd, 8 patches a volume",
    "torchio": "TorchIO SubjectsLoader, Queue + UniformSampler, 8 patches a volume",
}
_JUDGED = ("monai", "torchio")
_PACKAGES = ("aneurysm", "numpy", "torch", "monai", "torchio", "numcodecs", "SimpleITK")
_NOTES = """\
A loader is built, gives its first batch ("first batch", imports not counted), and then batches as fast as it can,
which the process only counts. "x ours" is our patches a second over the contender's, median of the rounds, with the
same number of workers. Memory is the peak of the sum, over the process and its workers, of what is theirs alone (PSS:
shared pages count by their share). All files are in the page cache. Ours draws patches about lesions, vessels and the
head; MONAI and TorchIO draw uniformly, and read volumes that they wrote before: MONAI its cache of tensors, TorchIO
.nii.gz. Neither gives targets of a patch. With 8 patches of each volume, the patches of a batch are of one series, or
of a few.
"""


@dataclass(frozen=True)
class Run:
    """What one process found."""

    first_s: float
    patches_per_s: float
    peak_mb: float


def main() -> int:
    """Time everything, print, and say with the exit code whether the aims are met."""
    options = _options()
    work = work_folder(options)
    if options.child:
        print(json.dumps(_measure(options.child, options.workers[0], work, options)))
        return 0
    make_cache(work, options.series, options.size)
    runs: dict[tuple[str, int], list[Run]] = {}
    for number in range(options.rounds):
        for workers in options.workers:
            for name in options.contenders:
                print(f"round {number + 1} of {options.rounds}: {name}, {workers} workers", file=sys.stderr)
                runs.setdefault((name, workers), []).append(_run(name, workers, work, options))
    targets = [
        Target(f"at least 5x {TITLES[name].split(',')[0]}, {workers} workers", f"{ratio:.1f}x", ratio >= 5)
        for (name, workers) in runs
        if name in _JUDGED and (ratio := _ratio(runs, name, workers))
    ]
    text = _markdown(runs, targets, work, options)
    print(text)
    if options.write:
        write_section(text)
    return 0 if all(target.met for target in targets) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--contenders", nargs="+", choices=TITLES, default=list(TITLES))
    parser.add_argument("--seconds", type=float, default=8.0, help="of each run, after the first batch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--series", type=int, default=8, help="phantom series to make")
    parser.add_argument("--size", choices=("full", "small", "tiny"), default="full", help="of the phantom series")
    add_usual_options(parser)
    parser.add_argument("--child", choices=TITLES, help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(name: str, workers: int, work: Path, options: argparse.Namespace) -> Run:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.loader", "--child", name, "--workers", str(workers)]
    command += ["--work", str(work), "--seconds", str(options.seconds)]
    command += ["--series", str(options.series), "--size", options.size]
    # One thread a process: what is compared is the work, and each worker is given a core at most.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}
    ran = subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    return Run(**json.loads(ran.stdout.splitlines()[-1]))


def _measure(name: str, workers: int, work: Path, options: argparse.Namespace) -> dict[str, float]:
    import torch

    torch.set_num_threads(1)
    cache = make_cache(work, options.series, options.size)
    make = {
        "ours": _ours,
        "ours-5000": _ours,
        "ours-float": _ours,
        "monai": _monai,
        "monai-8": _monai,
        "torchio": _torchio,
    }[name]
    loader = make(name, cache, workers)
    memory = MemoryWatch()
    started = time.perf_counter()
    batches = iter(_forever(loader()))
    images = (next(batches) for _ in iter(int, 1))
    _use(next(images), name)
    first_s = time.perf_counter() - started
    patches, started = 0, time.perf_counter()
    while time.perf_counter() - started < options.seconds:
        patches += _use(next(images), name)
    seconds = time.perf_counter() - started
    return {"first_s": first_s, "patches_per_s": patches / seconds, "peak_mb": memory.stop()}


def _forever(loader: Iterable[Any]) -> Iterable[Any]:
    while True:
        yield from loader


def _use(batch: Any, name: str) -> int:
    if name in ("ours", "ours-5000"):
        image = batch.image
    elif name == "ours-float":
        image = batch.normalised()
    else:
        image = batch["image"]
        image = image["data"] if isinstance(image, dict) else image
    if tuple(image.shape[1:]) != (1, *PATCH):
        raise SystemExit(f"{name} gave patches of {tuple(image.shape)}")
    return len(image)


def _ours(name: str, cache: Path, workers: int) -> Any:
    from aneurysm.cache.cache import open_cache
    from aneurysm.patches.loader import PatchLoader

    cache = _many(cache, 5000) if name == "ours-5000" else cache

    def make() -> Any:
        opened = open_cache(cache)
        return PatchLoader(opened, volumes=range(len(opened)), patch=PATCH, batch_size=BATCH, steps=50, workers=workers)

    return make


def _many(cache: Path, count: int) -> Path:
    """Return a cache of so many series: those of ``cache`` again and again, by links, under other names."""
    import pandas as pd

    from aneurysm.cache.layout import CacheLayout

    many = cache.with_name(f"{cache.name}-{count}")
    if (many / "manifest.csv").exists():
        return many
    (many / "volumes").mkdir(parents=True, exist_ok=True)
    (many / "spec.toml").write_text((cache / "spec.toml").read_text())
    manifest, lesions = (pd.read_csv(cache / name, dtype=str) for name in ("manifest.csv", "lesions.csv"))
    cached = manifest[manifest["status"] == "cached"].reset_index(drop=True)
    times = -(-count // len(cached))
    renamed = [
        [table.assign(series_uid=table["series_uid"] + f".{k}") for k in range(times)] for table in (cached, lesions)
    ]
    for uid in cached["series_uid"]:
        for k in range(times):
            link = CacheLayout(many).volume(f"{uid}.{k}")
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(CacheLayout(cache).volume(uid))
    pd.concat(renamed[1]).to_csv(many / "lesions.csv", index=False)
    pd.concat(renamed[0])[:count].to_csv(many / "manifest.csv", index=False)
    return many


def _monai(name: str, cache: Path, workers: int) -> Any:
    import numpy as np
    from monai.data import DataLoader, PersistentDataset, list_data_collate
    from monai.transforms import Compose, EnsureTyped, LoadImaged, RandSpatialCropd, RandSpatialCropSamplesd

    folder = cache.with_name(f"{cache.name}-for-loader") / "monai"
    volumes = cached_volumes(cache)
    fitting = that_hold(volumes, PATCH)
    (folder / "sources").mkdir(parents=True, exist_ok=True)
    items = [{"image": str(folder / "sources" / f"{i}.npy")} for i in fitting]
    for i, item in zip(fitting, items, strict=True):
        if not Path(item["image"]).exists():
            np.save(item["image"], volumes[i].read_normalised((0, 0, 0), volumes[i].shape))
    many = name == "monai-8"
    crop: Any = (
        RandSpatialCropSamplesd("image", PATCH, BATCH, random_size=False)
        if many
        else RandSpatialCropd("image", PATCH, random_size=False)
    )
    steps = Compose([LoadImaged("image", ensure_channel_first=True), EnsureTyped("image"), crop])
    data = PersistentDataset(items, steps, folder / "cache")
    for i in range(len(data)):  # the first use of an item fills the cache on disk
        data[i]

    def make() -> Any:
        return DataLoader(
            PersistentDataset(items * (1 if many else BATCH), steps, folder / "cache"),
            batch_size=1 if many else BATCH,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=list_data_collate,
        )

    return make


def _torchio(name: str, cache: Path, workers: int) -> Any:
    del name
    import SimpleITK as sitk
    import torchio

    folder = cache.with_name(f"{cache.name}-for-loader") / "torchio"
    folder.mkdir(parents=True, exist_ok=True)
    volumes = cached_volumes(cache)
    fitting = that_hold(volumes, PATCH)
    for i in fitting:
        if not (folder / f"{i}.nii.gz").exists():
            voxels = volumes[i].read_normalised((0, 0, 0), volumes[i].shape)
            sitk.WriteImage(sitk.GetImageFromArray(voxels), str(folder / f"{i}.nii.gz"))

    def make() -> Any:
        subjects = [torchio.Subject(image=torchio.ScalarImage(folder / f"{i}.nii.gz")) for i in fitting]
        queue = torchio.Queue(
            torchio.SubjectsDataset(subjects),
            max_length=BATCH * len(fitting),
            samples_per_volume=BATCH,
            sampler=torchio.UniformSampler(PATCH[::-1]),
            num_workers=workers,
        )
        return torchio.SubjectsLoader(queue, batch_size=BATCH, num_workers=0, drop_last=True)

    return make


def _ratio(runs: dict[tuple[str, int], list[Run]], name: str, workers: int) -> float:
    ours = runs.get(("ours", workers), [])
    pairs = zip(ours, runs[name, workers], strict=False)
    return median([a.patches_per_s / b.patches_per_s for a, b in pairs] or [0.0])


def _markdown(
    runs: dict[tuple[str, int], list[Run]], targets: list[Target], work: Path, options: argparse.Namespace
) -> str:
    volumes = cached_volumes(make_cache(work, options.series, options.size))
    lines = ["# Loading batches, beside MONAI and TorchIO", ""]
    lines += [f"- {key}: {value}" for key, value in machine(_PACKAGES).items()]
    lines += [
        f"- volumes: {len(volumes)} phantom series ({options.size}), of "
        + ", ".join("x".join(map(str, v.shape)) for v in volumes),
        f"- command: `{command_line('benchmarks.loader')}`",
        f"- {options.rounds} rounds, in each {options.seconds:g} s of every loader",
        "",
        _NOTES,
    ]
    lines += aims(targets)
    lines += ["| loader | workers | patches/s, median | best | x ours | first batch s | peak MB |"]
    lines += ["|---|--:|--:|--:|--:|--:|--:|"]
    for (name, workers), found in runs.items():
        lines.append(
            f"| {TITLES[name]} | {workers} | {median(r.patches_per_s for r in found):.0f} | "
            f"{max(r.patches_per_s for r in found):.0f} | {_ratio(runs, name, workers):.1f} | "
            f"{median(r.first_s for r in found):.2f} | {max(r.peak_mb for r in found):.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
