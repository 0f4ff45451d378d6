"""
Arrays of your own -> a cache and folds.csv, for `aneurysm train` and `aneurysm evaluate`; no DICOM is involved.

    python examples/own_arrays.py vesselmnist3d_28.npz

reads train_images, val_images and test_images (n x 28 x 28 x 28 uint8), and train_labels, ... (n x 1, 0 or 1). Without
a file it makes such arrays: pieces of vessels, every other one with a bulge. docs/own_arrays.md goes on from here.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aneurysm import CacheWriter
from aneurysm.training.folds import write_folds

FOLDS = {"train": 0, "val": 1, "test": 2}
SYNTHETIC = {"train": 120, "val": 40, "test": 40}


def read_npz(path: Path) -> Iterator[tuple[str, NDArray[np.uint8], NDArray[np.int64]]]:
    """Yield each split's name, its images (n, z, y, x) and its labels (n,)."""
    with np.load(path) as arrays:  # it runs no code of the file: allow_pickle is off
        for split in FOLDS:
            yield split, arrays[f"{split}_images"], arrays[f"{split}_labels"].ravel().astype(np.int64)


def make_arrays(seed: int = 0) -> Iterator[tuple[str, NDArray[np.uint8], NDArray[np.int64]]]:
    """Yield the same of made-up vessels."""
    rng = np.random.default_rng(seed)
    for split, n in SYNTHETIC.items():
        labels = np.arange(n) % 2
        yield split, np.stack([make_vessel(rng, bulge=bool(label)) for label in labels]), labels


def make_vessel(rng: np.random.Generator, *, bulge: bool, edge: int = 28) -> NDArray[np.uint8]:
    """Return a bright tube through a dark cube, with noise; with ``bulge`` there is a sphere at its side."""
    zyx = np.stack(np.meshgrid(*[np.arange(edge)] * 3, indexing="ij"), axis=-1).astype(float)
    middle, radius = (edge - 1) / 2 + rng.uniform(-3, 3, 3), rng.uniform(1.5, 3.0)
    along = rng.normal(size=3)
    along /= np.linalg.norm(along)
    from_middle = zyx - middle
    aside = from_middle - (from_middle @ along)[..., None] * along
    depth = radius - np.linalg.norm(aside, axis=-1)
    if bulge:
        side = np.cross(along, rng.normal(size=3))
        side *= (radius + 1.5) / np.linalg.norm(side)
        depth = np.maximum(depth, rng.uniform(3.5, 5.0) - np.linalg.norm(from_middle - side, axis=-1))
    # 200 within, 40 outside, half of each at the wall.
    values = 40 + 160 / (1 + np.exp(-2 * depth)) + rng.normal(0, 12, zyx.shape[:3])
    return np.clip(values, 0, 255).astype(np.uint8)


def main() -> None:
    """Write the cache and the folds."""
    parser = argparse.ArgumentParser(description="Put arrays into a cache.")
    parser.add_argument("npz", nargs="?", type=Path, help="file of arrays; made up if none is given")
    parser.add_argument("--cache", type=Path, default=Path("cache28"))
    parser.add_argument("--folds", type=Path, default=Path("folds28.csv"))
    given = parser.parse_args()

    uids: list[str] = []
    folds: list[int] = []
    with CacheWriter(given.cache, spec="arrays-u8") as writer:
        for split, images, labels in read_npz(given.npz) if given.npz else make_arrays():
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                uid = f"{split}-{i:05d}"
                writer.add(uid, image, labels={"Aneurysm Present": int(label)})
                uids.append(uid)
                folds.append(FOLDS[split])
    # Of whom each patch is, is not known here; who knows it gives `patient=` to writer.add, too.
    write_folds(given.folds, uids, [""] * len(uids), folds)
    print(f"{len(uids)} volumes in {given.cache}, folds in {given.folds}")  # noqa: T201 - this is a script


if __name__ == "__main__":
    main()
