"""`python -m benchmarks.train_monai`: training from our cache, beside a plain MONAI script on the same volumes.

The MONAI script is what its tutorials show: NIfTI files and masks of the lesions, PersistentDataset or CacheDataset,
RandCropByPosNegLabeld, a few random transforms, DataLoader, a loop of steps. Both train the same network on the same
voxels. Every run is a process of its own; runs take turns. Prints Markdown; `--write` puts it into
benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.memory import MemoryWatch
from benchmarks.options import add_usual_options, work_folder
from benchmarks.patch_data import ROOT, make_cache, size_mb
from benchmarks.table import Target, aims, command_line, machine, write_section

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aneurysm.cache.cache import Cache, open_cache

TITLES = {
    "ours": "ours: `aneurysm train`'s own loop",
    "persistent": "MONAI PersistentDataset",
    "cache": "MONAI CacheDataset",
}
_SAMPLES = 4
"""Patches that MONAI's crop takes of a volume at once, as in its tutorials."""
_LESION_MM = 3.0
_NOTES = """\
"First step": from the opening of the data to the end of the first optimiser step, imports not counted; MONAI's
datasets begin empty, as on a fresh machine. "Patches/s": of steps after that, when all that MONAI keeps is kept.
Memory is the peak of process and workers (PSS: shared pages count by their share). Disk is what training reads or
writes: our cache; MONAI's NIfTI files (.nii.gz, 16 bits) and, for PersistentDataset, its tensors. MONAI takes
{samples} patches of a volume at once; ours takes every patch from a series of its own.
"""


@dataclass(frozen=True)
class Run:
    """What one process found."""

    first_s: float
    patches_per_s: float
    peak_mb: float
    disk_mb: float


def main() -> int:
    """Time everything, print, and say with the exit code whether we are ahead on each count."""
    options = _options()
    work = work_folder(options)
    root = make_cache(work, options.series, options.size)
    if options.child:
        print(json.dumps(_measure(options.child, root, options)))
        return 0
    _write_nifti(root)
    runs: dict[str, list[Run]] = {name: [] for name in TITLES}
    for number in range(options.rounds):
        for name in TITLES:
            print(f"round {number + 1} of {options.rounds}: {name}", file=sys.stderr)
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.train_monai", "--child", name, *sys.argv[1:]]
            ran = subprocess.run(command, check=True, cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, text=True)
            runs[name].append(Run(**json.loads(ran.stdout.splitlines()[-1])))
    text = _markdown(runs, _targets(runs), options)
    print(text)
    if options.write:
        write_section(text)
    return 0 if all(target.met for target in _targets(runs)) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet3d18")
    parser.add_argument("--patch", type=int, default=64, help="edge in voxels")
    parser.add_argument("--batch-size", type=int, default=8, help="a multiple of 4")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10, help="steps that are timed, after the first ones")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--series", type=int, default=24, help="phantom series to make")
    parser.add_argument("--size", choices=("full", "small", "tiny"), default="small", help="of the phantom series")
    add_usual_options(parser)
    parser.add_argument("--child", choices=TITLES, help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(name: str, root: Path, options: argparse.Namespace) -> dict[str, float]:
    warnings.simplefilter("ignore")
    memory = MemoryWatch()
    first_s, rate = (_ours if name == "ours" else _monai)(name, root, options)
    folders = {"ours": [root], "cache": [_nifti(root)], "persistent": [_nifti(root), _tensors(root)]}[name]
    disk = size_mb(path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {"first_s": first_s, "patches_per_s": rate, "peak_mb": memory.stop(), "disk_mb": disk}


def _ours(name: str, root: Path, options: argparse.Namespace) -> tuple[float, float]:
    del name

    from aneurysm.models.registry import build_model
    from aneurysm.patches.loader import PatchLoader
    from aneurysm.training.config import TrainConfig
    from aneurysm.training.fit import for_machine
    from aneurysm.training.learner import Learner
    from aneurysm.training.module import PatchModule
    from aneurysm.training.ranks import Ranks
    from aneurysm.training.timed_loader import TimedBatches

    edge = options.patch
    clock = _Clock(options)

    config = for_machine(
        TrainConfig(
            cache=str(root),
            model=options.model,
            patch=(edge, edge, edge),
            batch_size=options.batch_size,
            epochs=1,
            steps_per_epoch=_warm_up(options) + options.steps,
            devices=1,
        ).resolved()
    )
    cache = open_cache(root)
    view = config.view_on(cache.spec)
    learner = Learner(PatchModule(build_model(config.model, 1), config, view), config, Ranks())
    loader = PatchLoader(
        cache,
        volumes=range(len(cache)),
        patch=config.patch,
        batch_size=config.batch_size,
        steps=config.steps_per_epoch,
        workers=options.workers,
        pin_memory=learner.device.type == "cuda",
    )
    for batch in TimedBatches(loader, learner.device):
        learner.step(batch)
        clock.step()
    loader.close()
    return clock.first_s, clock.rate


def _monai(name: str, root: Path, options: argparse.Namespace) -> tuple[float, float]:
    import torch
    import torch.nn.functional as F  # noqa: N812
    from monai import data
    from monai import transforms as mt

    from aneurysm.models.registry import build_model

    edge, keys = (options.patch,) * 3, ["image", "label"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fixed = [
        mt.LoadImaged(keys, ensure_channel_first=True),
        mt.ScaleIntensityRangePercentilesd("image", 0.5, 99.5, 0, 1, clip=True),
        mt.SpatialPadd(keys, edge),
    ]
    random = [
        mt.RandCropByPosNegLabeld(keys, "label", edge, pos=1, neg=1, num_samples=_SAMPLES),
        mt.RandFlipd(keys, 0.5, 0),
        mt.RandAffined(keys, edge, 0.5, (0.26,) * 3, scale_range=(0.15,) * 3, mode=("bilinear", "nearest")),
        mt.RandAdjustContrastd("image", 0.3, (0.7, 1.5)),
        mt.RandGaussianNoised("image", 0.2, 0, 0.05),
    ]
    shutil.rmtree(_tensors(root), ignore_errors=True)
    clock = _Clock(options)
    items = [
        {"image": str(path), "label": str(path).replace("image-", "label-")}
        for path in sorted(_nifti(root).glob("image-*"))
    ]
    steps = mt.Compose([*fixed, *random])
    volumes: Any = (
        data.PersistentDataset(items, steps, _tensors(root))
        if name == "persistent"
        else data.CacheDataset(items, steps, num_workers=options.workers, progress=False)
    )
    # Shuffled anew for each epoch, of which there are as many as it takes.
    loader = data.DataLoader(
        volumes,
        batch_size=options.batch_size // _SAMPLES,
        shuffle=True,
        drop_last=True,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
        pin_memory=device.type == "cuda",
    )
    model = build_model(options.model, 1).to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4)
    for batch in _forever(loader):
        image = batch["image"].as_tensor().to(device, non_blocking=True, memory_format=torch.channels_last_3d)
        target = batch["label"].as_tensor().to(device).flatten(2).amax(2)  # some lesion in the patch
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(image).logits
        loss = F.binary_cross_entropy_with_logits(logits.float()[:, -1:], target.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clock.step()
        if clock.steps == 1 and name == "persistent":
            for index in range(len(volumes)):  # what the first epoch keeps on the disk
                volumes[index]
        if clock.done:
            break
    return clock.first_s, clock.rate


def _forever(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def _warm_up(options: argparse.Namespace) -> int:
    """Return the steps before those that are timed: what was read ahead while nobody computed is used up in them."""
    return 2 + 2 * options.workers


class _Clock:
    """Time to the end of the first step, and the rate of those after the warm-up."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options, self.steps = options, 0
        self.first_s = self.rate = self._since = 0.0
        self._started = time.perf_counter()

    @property
    def done(self) -> bool:
        return self.steps == _warm_up(self._options) + self._options.steps

    def step(self) -> None:
        import torch

        self.steps += 1
        if self.steps != 1 and self.steps != _warm_up(self._options) and not self.done:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self.steps == 1:
            self.first_s = now - self._started
        elif self.done:
            self.rate = self._options.steps * self._options.batch_size / (now - self._since)
        else:
            self._since = now


def _nifti(root: Path) -> Path:
    return root.with_name(f"{root.name}-nifti")


def _tensors(root: Path) -> Path:
    return root.with_name(f"{root.name}-persistent")


def _write_nifti(root: Path) -> None:
    """Write the cache's volumes and balls about their lesions as NIfTI, once."""
    import numpy as np
    import SimpleITK as sitk

    if _nifti(root).exists():
        return
    part = root.with_name(f"{root.name}-nifti.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    cache: Cache = open_cache(root)
    for number, volume in enumerate(cache):
        voxels = volume.read((0, 0, 0), volume.shape)
        grid = np.indices(volume.shape, np.float32)
        ball = np.zeros(volume.shape, np.uint8)
        for zyx in cache.lesion_zyx[cache.lesions_of(number)]:
            ball[np.square(grid - zyx[:, None, None, None]).sum(axis=0) <= _LESION_MM**2] = 1
        for kind, array in (("image", voxels), ("label", ball)):
            sitk.WriteImage(sitk.GetImageFromArray(array), str(part / f"{kind}-{number:04d}.nii.gz"))
    part.rename(_nifti(root))


def _targets(runs: dict[str, list[Run]]) -> list[Target]:
    ours = runs["ours"]
    targets = []
    for name in ("persistent", "cache"):
        pairs = list(zip(ours, runs[name], strict=True))
        for what, ratio in (
            ("time to the first step", median(b.first_s / a.first_s for a, b in pairs)),
            ("patches/s", median(a.patches_per_s / b.patches_per_s for a, b in pairs)),
            ("host memory", median(b.peak_mb / a.peak_mb for a, b in pairs)),
            ("disk", median(b.disk_mb / a.disk_mb for a, b in pairs)),
        ):
            targets.append(Target(f"ahead of {TITLES[name]} in {what}", f"{ratio:.2f}x", ratio > 1))
    return targets


def _markdown(runs: dict[str, list[Run]], targets: list[Target], options: argparse.Namespace) -> str:
    from benchmarks.step_profile import device_name

    lines = ["# Training, beside a plain MONAI script", ""]
    lines += [f"- {key}: {value}" for key, value in machine(("aneurysm", "torch", "monai")).items()]
    lines += [
        f"- device: {device_name()}",
        f"- {options.model}, {options.batch_size} patches of {options.patch}^3 a step; {options.workers} workers",
        f"- {options.series} phantom series ({options.size}), and no others",
        f"- command: `{command_line('benchmarks.train_monai')}`",
        f"- medians of {options.rounds} rounds, in each {options.steps} steps of every contender",
        "",
        _NOTES.format(samples=_SAMPLES),
        *aims(targets),
        "| | first step s | patches/s | memory MB | disk MB |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, found in runs.items():
        lines.append(
            f"| {TITLES[name]} | {median(r.first_s for r in found):.1f} | {median(r.patches_per_s for r in found):.2f} "
            f"| {median(r.peak_mb for r in found):.0f} | {median(r.disk_mb for r in found):.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
