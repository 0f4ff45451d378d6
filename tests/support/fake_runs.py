"""Runs as `aneurysm train` leaves them, from a seed: scores go with the labels, as those of a model of some skill."""

from __future__ import annotations

import csv
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aneurysm.labels import LABELS, MODALITIES, SITES

# Shares of the 13 sites among positives, and of the modalities, about as in the competition's data.
_SITE_SHARES = np.array([4, 5, 15, 14, 11, 14, 18, 3, 3, 4, 5, 6, 6], float)
_MODALITY_SHARES = (0.42, 0.29, 0.22, 0.07)


@dataclass(frozen=True)
class FakeSeries:
    """Series with labels: the truth that fake runs are about."""

    uids: list[str]
    patients: list[str]
    modalities: list[str]
    labels: np.ndarray  # (n, 14), 255 where not known

    def __len__(self):
        return len(self.uids)


def fake_series(n: int, seed: int = 0, *, prevalence=0.43, unknown=0.0) -> FakeSeries:
    """Some patients have two series; every site occurs if there are enough."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((n, 14), np.uint8)
    for i in np.flatnonzero(rng.random(n) < prevalence):
        count = 1 + int(rng.random() < 0.2)
        labels[i, rng.choice(13, count, replace=False, p=_SITE_SHARES / _SITE_SHARES.sum())] = 1
        labels[i, 13] = 1
    labels[rng.random(labels.shape) < unknown] = 255
    patients = [f"patient{i - (i % 9 == 1)}" for i in range(n)]
    uids = [f"1.2.826.0.1.{1000 + i}" for i in range(n)]
    return FakeSeries(uids, patients, rng.choice(MODALITIES, n, p=_MODALITY_SHARES).tolist(), labels)


def of_cache(cache) -> FakeSeries:
    """The series of a cache."""
    return FakeSeries(cache.uids, cache.patient_keys, cache.modalities, cache.labels)


def fake_scores(labels, rng, skill=1.5, temperature=0.5) -> np.ndarray:
    """Probabilities (n, 14), overconfident by ``1 / temperature``; a positive label draws its opposite side along."""
    truth = np.where(labels == 255, 0, labels).astype(float)
    mirrored = truth.copy()
    for left, right in ((0, 1), (2, 3), (4, 5), (7, 8), (9, 10)):
        mirrored[:, [left, right]] = truth[:, [right, left]]
    difficulty = rng.normal(0, 0.7, (len(labels), 1))
    base = np.where(np.arange(14) < 13, -2.6, -0.4)
    logits = base + skill * truth * (1 + difficulty) + 0.3 * skill * mirrored + rng.normal(0, 1, truth.shape)
    return 1 / (1 + np.exp(-logits / temperature))


def folds_of(series: FakeSeries, n_folds=5) -> np.ndarray:
    return np.array([zlib.crc32((p or u).encode()) % n_folds for p, u in zip(series.patients, series.uids)])


def write_run(
    root: Path, series: FakeSeries, *, fold=0, n_folds=5, seed=0, skill=1.5, cache="cache", columns=LABELS, epochs=8
) -> Path:
    """A run's folder with config.toml, folds.csv, metrics.csv and predictions_val.csv."""
    root.mkdir(parents=True)
    rng = np.random.default_rng([seed, fold])
    folds = folds_of(series, n_folds)
    (root / "config.toml").write_text(
        f'cache = "{cache}"\nmodel = "resnet3d18-dense"\npatch = [64, 64, 64]\nbatch_size = 8\nepochs = {epochs}\n'
        f"fold = {fold}\nfolds = {n_folds}\nseed = {seed}\n\n[losses]\nbce = 1.0\ndense_top_k = 0.5\n"
    )
    with (root / "folds.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("series_uid", "patient_key", "fold"), *sorted(zip(series.uids, series.patients, folds.tolist()))]
        )
    held_out = np.flatnonzero(folds == fold)
    scores = fake_scores(series.labels[held_out], rng, skill)
    write_predictions(root / "predictions_val.csv", series, held_out, scores, fold, columns)
    with (root / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("epoch", "step", "loss", "learning_rate", "score", "present_auc", "site_auc"))
        for epoch in range(1, epochs + 1):
            auc = 0.5 + 0.25 * (1 - np.exp(-epoch / 3)) + rng.normal(0, 0.01)
            loss = 0.2 + 0.5 * np.exp(-epoch / 3)
            tested = epoch % 2 == 0 or epoch == epochs
            aucs = (f"{auc:.4f}", f"{auc + 0.03:.4f}", f"{auc - 0.03:.4f}") if tested else ("", "", "")
            writer.writerow((epoch, epoch * 100, f"{loss:.5f}", "0.001", *aucs))
    return root


def write_predictions(path: Path, series: FakeSeries, chosen, scores, fold=0, columns=LABELS) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["series_uid", "modality", "fold", *(f"p: {c}" for c in columns), *(f"y: {c}" for c in columns)]
        )
        for i, values in zip(chosen, scores):
            labels = ["" if y == 255 else int(y) for y in series.labels[i]]
            writer.writerow([series.uids[i], series.modalities[i], fold, *(f"{v:.6g}" for v in values), *labels])


def say(root: Path, **values) -> Path:
    """Add columns that are the same for all series to a run's predictions: part, epoch, digest."""
    header, *rows = (root / "predictions_val.csv").read_text().splitlines()
    lines = [",".join([header, *values]), *(",".join([row, *map(str, values.values())]) for row in rows)]
    (root / "predictions_val.csv").write_text("\n".join(lines) + "\n")
    return root


def write_candidates(root: Path, cache, *, seed=0, sensitivity=0.75, false_per_scan=2.0) -> None:
    """candidates_val.csv: most lesions are found within 2 mm; false ones lie anywhere, and are less probable."""
    rng = np.random.default_rng(seed)
    with (root / "predictions_val.csv").open(newline="") as file:
        uids = [row["series_uid"] for row in csv.DictReader(file)]
    with (root / "candidates_val.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("series_uid", "site", "probability", "z", "y", "x", "x_mm", "y_mm", "z_mm"))
        for uid in uids:
            i = cache.uids.index(uid)
            affine = cache[i].affine_lps
            found = []
            lesions = cache.lesions_of(i)
            for site, zyx in zip(cache.lesion_site[lesions], cache.lesion_zyx[lesions]):
                if rng.random() < sensitivity:
                    found.append((int(site), rng.beta(4, 2), zyx + rng.normal(0, 0.8, 3)))
            for _ in range(rng.poisson(false_per_scan)):
                place = rng.uniform(0.25, 0.75, 3) * cache.shapes[i]
                found.append((int(rng.integers(len(SITES))), rng.beta(1.5, 5), place))
            for site, probability, zyx in sorted(found, key=lambda c: -c[1]):
                lps = affine[:3, :3] @ zyx + affine[:3, 3]
                writer.writerow([uid, SITES[site], f"{probability:.6g}", *np.round([*zyx, *lps], 4).tolist()])
