"""`python -m benchmarks.phantom_auc`: how hard the phantom is for a small 3D network that looks at patches.

Series are made by `aneurysm phantom` at the default difficulty and cached by `aneurysm precache`. Patches of 32^3 (1
mm) are drawn about lesions and about vessels; the network learns from three quarters of the series, is judged on the
rest. Prints Markdown; `--write` puts it into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.options import add_usual_options, work_folder
from benchmarks.patch_data import make_cache
from benchmarks.table import Target, aims, command_line, machine, write_section

if TYPE_CHECKING:
    from aneurysm.cache.cache import Cache, open_cache

EDGE = 32
_PRESENT = 13
_NOTES = """\
The network has four convolutions. AUC is of "a lesion lies in this patch", over patches about lesions
and about vessels in equal parts, of series that it never saw; patches that cut a lesion are left out. Brackets: number
of patches with and without.
"""


def main() -> int:
    """Make the series, train and judge for each seed, print, and say with the exit code if it is as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--steps", type=int, default=75, help="batches of 32 in an epoch")
    parser.add_argument("--seeds", type=int, default=3)
    add_usual_options(parser)
    options = parser.parse_args()
    work = work_folder(options)

    cache = open_cache(make_cache(work, options.series, "small"))
    rows = [_one_seed(cache, seed, options) for seed in range(options.seeds)]
    overall = [row["all"][0] for row in rows]
    middle = float(np.mean(overall))
    targets = [Target("AUC about 0.9 and not 1.0 (0.85 to 0.97)", f"{middle:.3f}", 0.85 <= middle <= 0.97)]
    lines = ["# How hard the phantom is", ""]
    lines += [f"- {key}: {value}" for key, value in machine(("aneurysm", "torch", "numpy")).items()]
    lines += [f"- {len(cache)} series, {len(cache.lesion_site)} lesions, default difficulty"]
    lines += [
        f"- command: `{command_line('benchmarks.phantom_auc')}`",
        "",
        _NOTES,
        *aims(targets),
    ]
    groups = list(rows[0])
    lines += ["| seed | " + " | ".join(groups) + " |", "|--:|" + "--:|" * len(groups)]
    for seed, row in enumerate(rows):
        cells = [f"{row[g][0]:.3f} ({row[g][1]}, {row[g][2]})" for g in groups]
        lines.append(f"| {seed} | " + " | ".join(cells) + " |")
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        write_section(text)
    return 0 if all(t.met for t in targets) else 1


def _one_seed(cache: Cache, seed: int, options: argparse.Namespace) -> dict[str, tuple[float, int, int]]:
    import torch

    from aneurysm.patches.augment import augment
    from aneurysm.patches.augment_config import AugmentConfig
    from aneurysm.patches.loader import PatchLoader
    from aneurysm.patches.plan import Sampling

    torch.manual_seed(seed)
    order = np.random.default_rng(seed).permutation(len(cache))
    held_out = len(cache) // 4
    sampling = Sampling(lesion=1, vessel=1, foreground=0, uniform=0, balance="label")

    def loader(volumes: Any, steps: int) -> PatchLoader:
        return PatchLoader(
            cache, volumes=volumes, patch=(EDGE, EDGE, EDGE), batch_size=32, steps=steps, sampling=sampling, seed=seed
        )

    net = _network()
    optimiser = torch.optim.AdamW(net.parameters(), 4e-3, weight_decay=1e-2)
    total = options.epochs * options.steps
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=total)
    train = loader(order[held_out:], options.steps)
    net.train()
    for epoch in range(options.epochs):
        losses = []
        for batch in train:
            given = augment(batch, AugmentConfig())
            keep = ~given.ignore[:, _PRESENT]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                net(given.image)[keep, 0], given.targets[keep, _PRESENT]
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.detach())
        print(f"seed {seed}, epoch {epoch}: loss {torch.stack(losses).mean():.3f}", file=sys.stderr)
    net.eval()
    scores, targets, modalities = [], [], []
    with torch.inference_mode():
        for batch in loader(order[:held_out], 40):
            given = augment(batch, AugmentConfig.off())
            keep = ~given.ignore[:, _PRESENT]
            scores.append(net(given.image)[keep, 0].numpy())
            targets.append(given.targets[keep, _PRESENT].numpy())
            modalities += [cache.modalities[v] for v in batch.volume[keep].tolist()]
    return _by_group(np.concatenate(scores), np.concatenate(targets), np.array(modalities))


def _network() -> Any:
    from torch import nn

    def block(inputs: int, outputs: int) -> Any:
        return nn.Sequential(nn.Conv3d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm3d(outputs), nn.ReLU())

    return nn.Sequential(
        block(1, 8), nn.MaxPool3d(2), block(8, 16), nn.MaxPool3d(2), block(16, 32), block(32, 32),
        nn.AdaptiveMaxPool3d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(32, 1),
    )  # fmt: skip


def _by_group(scores: Any, targets: Any, modalities: Any) -> dict[str, tuple[float, int, int]]:
    from sklearn.metrics import roc_auc_score

    found = {}
    for group in ("all", *sorted(set(modalities.tolist()))):
        of = np.full(len(scores), True) if group == "all" else modalities == group
        positive = int(targets[of].sum())
        auc = roc_auc_score(targets[of], scores[of]) if 0 < positive < of.sum() else float("nan")
        found[group] = (float(auc), positive, int(of.sum()) - positive)
    return found


if __name__ == "__main__":
    sys.exit(main())
