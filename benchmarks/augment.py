"""`python -m benchmarks.augment`: time and peak memory of augmenting 8 patches of 96^3, beside MONAI's transforms.

Ours is `AugmentConfig()`, on the CPU with one thread, and on the GPU if there is one. MONAI's are its dictionary
transforms, sample by sample on one thread, as a DataLoader's worker runs them: flip, affine, gamma and noise with the
same chances and ranges; ours blurs, coarsens, shifts windows and moves a mask, lesions and targets besides. Each runs
in a process of its own. Memory is what the process grew by; on the GPU, what torch had allocated at most.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from statistics import mean, median

import torch

from aneurysm.patches.augment import augment
from aneurysm.patches.augment_config import AugmentConfig, Elastic
from aneurysm.patches.batch import Batch
from aneurysm.patches.targets import BatchLesions
from benchmarks.table import machine

SIZE, SIDE = 8, 96
WARM_UP = 2


def main() -> int:
    """Time each contender in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=12)
    batches = parser.parse_args().batches
    print("\n".join(f"- {key}: {value}" for key, value in machine().items()))
    print(f"\n| {batches} batches of {SIZE} x {SIDE}^3, int16 | mean ms | median ms | peak MB |\n|---|--:|--:|--:|")
    for name in CONTENDERS:
        if "cuda" in name and not torch.cuda.is_available():
            print(f"| {name} | no GPU here | | |")
            continue
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            ms, peak_mb = process.submit(_measure, name, batches).result()
        print(f"| {name} | {mean(ms):.1f} | {median(ms):.1f} | {peak_mb:.0f} |")
    return 0


def _measure(name: str, batches: int) -> tuple[list[float], float]:
    torch.set_num_threads(1)
    cuda = "cuda" in name
    batch = _batch().to("cuda" if cuda else "cpu")
    run = CONTENDERS[name]()
    before_mb, ms = _peak_mb(cuda), []
    for number in range(batches + WARM_UP):
        batch = replace(batch, seeds=torch.arange(SIZE) + number * SIZE)
        start = time.perf_counter()
        run(batch)
        if cuda:
            torch.cuda.synchronize()
        ms.append(1000 * (time.perf_counter() - start))
    return ms[WARM_UP:], _peak_mb(cuda) - before_mb


def _peak_mb(cuda: bool) -> float:
    if cuda:
        return torch.cuda.max_memory_allocated() / 1e6
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def _batch() -> Batch:
    ones, labels = torch.ones(SIZE), torch.zeros(SIZE, 14)
    numbers, zyx = torch.arange(SIZE), torch.rand(SIZE, 3) * SIDE
    return Batch(
        image=torch.randint(-1000, 2000, (SIZE, 1, SIDE, SIDE, SIDE), dtype=torch.int16),
        scale=ones,
        offset=0 * ones,
        window=torch.tensor([[-100.0, 900.0]] * SIZE),
        fill=-1000 * ones,
        is_ct=numbers % 2 == 0,
        vessels=torch.randint(0, 14, (SIZE, 1, SIDE, SIDE, SIDE), dtype=torch.uint8),
        has_vessels=ones.bool(),
        targets=labels,
        ignore=labels.bool(),
        unknown=labels.bool(),
        certain=labels.bool(),
        lesions=BatchLesions(numbers, numbers, zyx, zyx),
        spacing_mm=(1.0, 1.0, 1.0),
        seeds=numbers,
        index=numbers,
        volume=numbers,
        start=torch.zeros(SIZE, 3, dtype=torch.int64),
        series_uid=("",) * SIZE,
        why=("",) * SIZE,
    )


def _ours(config: AugmentConfig) -> Callable[[Batch], object]:
    return lambda batch: augment(batch, config)


def _monai() -> Callable[[Batch], object]:
    from monai import transforms as mt

    keys, defaults = ["image"], AugmentConfig()
    turn = [float(torch.deg2rad(torch.tensor(most))) for most in defaults.affine.rotation_deg]
    chain = mt.Compose([
        mt.ScaleIntensityRanged(keys, -100, 900, 0, 1, clip=True),
        mt.RandFlipd(keys, prob=defaults.flip.left_right, spatial_axis=2),
        mt.RandAffined(
            keys,
            prob=defaults.affine.p,
            rotate_range=turn,
            scale_range=[0.17] * 3,
            shear_range=[defaults.affine.shear] * 6,
            mode="bilinear",
            padding_mode="zeros",
        ),
        mt.RandAdjustContrastd(keys, prob=defaults.gamma.p, gamma=defaults.gamma.power),
        mt.RandGaussianNoised(keys, prob=defaults.noise.p, std=defaults.noise.sigma[1]),
    ])  # fmt: skip
    chain.set_random_state(0)
    return lambda batch: torch.stack([chain({"image": sample.float()})["image"] for sample in batch.image])


CONTENDERS: dict[str, Callable[[], Callable[[Batch], object]]] = {
    "ours, cpu, nothing drawn": lambda: _ours(AugmentConfig.off()),
    "ours, cpu": lambda: _ours(AugmentConfig()),
    "ours, cpu, with bending": lambda: _ours(AugmentConfig(elastic=Elastic(p=0.2))),
    "MONAI, cpu": _monai,
    "ours, cuda": lambda: _ours(AugmentConfig()),
    "ours, cuda, with bending": lambda: _ours(AugmentConfig(elastic=Elastic(p=0.2))),
}

if __name__ == "__main__":
    sys.exit(main())
