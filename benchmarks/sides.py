"""`python -m benchmarks.sides`: whether a model tells the left side from the right, with the labels swapped and not.

Phantom heads each have one aneurysm, at the left or at the right middle cerebral artery. `aneurysm train`'s own loop
learns from patches about those of two thirds of the heads, and is judged on such patches of the rest: with flips as
they are, which exchange the labels of left and right; with flips that leave the labels as they were, the mistake that
this is about; and without flips. Prints Markdown; `--write` puts it into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np

from aneurysm.labels import LABELS
from benchmarks.options import add_usual_options, work_folder
from benchmarks.table import Target, aims, command_line, machine, write_section

if TYPE_CHECKING:
    import torch

SIDES = ("Left Middle Cerebral Artery", "Right Middle Cerebral Artery")
_LEFT, _RIGHT = (LABELS.index(side) for side in SIDES)
_PATCHES = 8
"""Patches of each held-out head."""
_VARIANTS = {
    "flips, labels swapped": (0.5, nullcontext),
    "flips, labels left as they were": (0.5, lambda: _labels_stay()),
    "no flips": (0.0, nullcontext),
}
_NOTES = """\
AUC of "left" by the difference of the logits of left and right, over patches about the aneurysms of held-out heads
({patches} of each head): 0.5 is guessing. An aneurysm lies anywhere in its patch; voxels of 2 mm make 48 of them 96 mm.
"""


def main() -> int:
    """Make the heads, train and judge in each way for each seed, print, and say if it is as it should be."""
    warnings.simplefilter("ignore")
    options = _options()
    work = work_folder(options)
    cache = _make_cache(work, options)
    found: dict[str, list[float]] = {name: [] for name in _VARIANTS}
    for seed in range(options.seeds):
        for name in _VARIANTS:
            found[name].append(_auc(name, cache, work, seed, options))
            print(f"seed {seed}: {name}: {found[name][-1]:.3f}", file=sys.stderr, flush=True)
    swapped, stayed, _ = found.values()
    targets = [
        Target("with the labels swapped, AUC at least 0.8", f"{min(swapped):.3f} at worst", min(swapped) >= 0.8),
        Target("with labels left as they were, no better than guessing", f"{np.mean(stayed):.3f}",
               abs(float(np.mean(stayed)) - 0.5) < 0.15),
    ]  # fmt: skip
    lines = ["# Left and right", ""]
    lines += [f"- {key}: {value}" for key, value in machine(("aneurysm", "torch")).items()]
    lines += [
        f"- {options.series} tiny phantom heads, CTA and MRA in turn, a third held out",
        f"- resnet3d18 at a quarter of its width, {options.steps} steps of 16 patches",
        f"- command: `{command_line('benchmarks.sides')}`",
        "",
        _NOTES.format(patches=_PATCHES),
        *aims(targets),
        "| | " + " | ".join(f"seed {seed}" for seed in range(options.seeds)) + " |",
        "|---|" + "--:|" * options.seeds,
    ]
    lines += [f"| {name} | " + " | ".join(f"{auc:.3f}" for auc in aucs) + " |" for name, aucs in found.items()]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        write_section(text)
    return 0 if all(target.met for target in targets) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=180)
    parser.add_argument("--difficulty", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=200, help="batches of 16")
    parser.add_argument("--seeds", type=int, default=2)
    add_usual_options(parser, "1 GB")
    return parser.parse_args()


def _make_cache(work: Path, options: argparse.Namespace) -> Path:
    from aneurysm.phantom.dataset import write_plans
    from aneurysm.phantom.plan import plan_series
    from aneurysm.precaching.run import precache
    from aneurysm.spec import load_spec

    data = work / f"sides-{options.series}-{options.difficulty:g}"
    cache, spec = work / f"{data.name}-cache", work / "sides-2mm.toml"
    if not (cache / "manifest.csv").exists():
        plans = [
            plan_series(
                0,
                number,
                modality=("CTA", "MRA")[number // 2 % 2],
                sites=(SIDES[number % 2],),
                difficulty=options.difficulty,
            )
            for number in range(options.series)
        ]
        write_plans(data, plans, workers=2, overwrite=True)
        usual = load_spec("rsna-1mm")
        spec.write_text(usual.model_copy(update={"name": "sides-2mm", "spacing_mm": (2.0, 2.0, 2.0)}).to_toml())
        precache(data, cache, spec=str(spec), workers=2)
    return cache


def _auc(name: str, root: Path, work: Path, seed: int, options: argparse.Namespace) -> float:
    """Train, and return the AUC of left over patches about the aneurysms of held-out heads."""
    import torch
    from sklearn.metrics import roc_auc_score

    from aneurysm.cache.cache import open_cache
    from aneurysm.patches.loader import PatchLoader
    from aneurysm.training.checkpoint import load_checkpoint
    from aneurysm.training.config import TrainConfig
    from aneurysm.training.fit import fit
    from aneurysm.training.folds import read_folds
    from aneurysm.training.run_folder import RunFolder

    flips, labels = _VARIANTS[name]
    off = {"p": 0.0}
    config = TrainConfig.model_validate(
        {
            "cache": str(root),
            "model": "resnet3d18",
            "model_options": {"width": 0.25},
            "patch": [48, 48, 48],
            "batch_size": 16,
            "epochs": 1,
            "steps_per_epoch": options.steps,
            "folds": 3,
            "seed": seed,
            "workers": 0,
            "limit_val": 4,
            "sampling": {"lesion": 1.0, "vessel": 0.0, "foreground": 0.0, "uniform": 0.0},
            "optimizer": {"learning_rate": 1e-3, "ema_decay": 0.98},
            "augment": {"flip": {"left_right": flips}, "affine": off, "low_resolution": off, "blur": off},
        }
    ).resolved()
    cache = open_cache(root)
    with tempfile.TemporaryDirectory(dir=work) as part:
        folder = RunFolder(Path(part) / "run")
        with labels():
            fit(config, folder)
        folds = read_folds(folder.folds, cache.uids, cache.patient_keys)
        model = load_checkpoint(folder.last).build_model()
    held_out = np.flatnonzero(folds == 0).tolist()
    loader = PatchLoader(
        cache,
        volumes=held_out,
        patch=config.patch,
        batch_size=len(held_out),
        steps=_PATCHES,
        sampling=config.sampling.as_sampling(),
        seed=seed,
    )
    left, margin = [], []
    with torch.inference_mode():
        for batch in loader:
            logits = model(batch.normalised()).logits
            known = batch.targets[:, _LEFT] + batch.targets[:, _RIGHT] == 1
            left += batch.targets[known, _LEFT].tolist()
            margin += (logits[known, _LEFT] - logits[known, _RIGHT]).tolist()
    return float(roc_auc_score(left, margin))


@contextmanager
def _labels_stay() -> Iterator[None]:
    """Make the mistake: a mirrored left artery is still called left."""
    import torch

    def unchanged(device: torch.device) -> torch.Tensor:
        return torch.arange(14, device=device)

    with patch("aneurysm.patches.augment.mirrored_labels", unchanged):
        yield


if __name__ == "__main__":
    sys.exit(main())
