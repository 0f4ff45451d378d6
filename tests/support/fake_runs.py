"""Runs as `aneurysm train` leaves them, from a seed: scores go with the labels, as those of a model of some skill."""

from __future__ import annotations

import csv
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from aneurysm.labels import LABELS, MODALITIES, SITES
from aneurysm.prediction_table import PredictionRow, candidate_entry, read_rows, table_text

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


def write_run(root: Path, series: FakeSeries, *, fold=0, n_folds=5, seed=0, skill=1.5, cache="cache", epochs=8) -> Path:
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
    write_predictions(root / "predictions_val.csv", series, held_out, scores, fold)
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


def write_predictions(path: Path, series: FakeSeries, chosen, scores, fold=0) -> None:
    rows = [
        PredictionRow(
            series.uids[i],
            probabilities={name: float(f"{v:.6g}") for name, v in zip(LABELS, values)},
            modality=series.modalities[i],
            fold=int(fold),
            truth={name: None if y == 255 else int(y) for name, y in zip(LABELS, series.labels[i])},
        )
        for i, values in zip(chosen, scores)
    ]
    path.write_text(table_text(rows, path.suffix))


def change_rows(root: Path, change) -> Path:
    """Write each row of a run's predictions again, as ``change`` makes it."""
    path = root / "predictions_val.csv"
    path.write_text(table_text([change(row) for row in read_rows(path)], path.suffix))
    return root


def say(root: Path, **values) -> Path:
    """Give a run's predictions what is the same for all series: part, epoch, digest."""
    return change_rows(root, lambda row: replace(row, **values))


def write_candidates(root: Path, cache, *, seed=0, sensitivity=0.75, false_per_scan=2.0) -> None:
    """Most lesions are found within 2 mm; false ones lie anywhere, and are less probable."""
    rng = np.random.default_rng(seed)

    def with_candidates(row):
        i = cache.uids.index(row.series_uid)
        affine = cache[i].affine_lps
        found = []
        lesions = cache.lesions_of(i)
        for site, zyx in zip(cache.lesion_site[lesions], cache.lesion_zyx[lesions]):
            if rng.random() < sensitivity:
                found.append((int(site), rng.beta(4, 2), zyx + rng.normal(0, 0.8, 3)))
        for _ in range(rng.poisson(false_per_scan)):
            place = rng.uniform(0.25, 0.75, 3) * cache.shapes[i]
            found.append((int(rng.integers(len(SITES))), rng.beta(1.5, 5), place))
        return replace(
            row,
            candidates=[
                candidate_entry(SITES[site], float(f"{p:.6g}"), affine[:3, :3] @ zyx + affine[:3, 3], zyx)
                for site, p, zyx in sorted(found, key=lambda c: -c[1])
            ],
        )

    change_rows(root, with_candidates)


def write_labels(path: Path, series: FakeSeries) -> Path:
    """The truth as train.csv has it; of what is not known, that there is none."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("SeriesInstanceUID", "Modality", *LABELS))
        for uid, modality, labels in zip(series.uids, series.modalities, series.labels):
            writer.writerow((uid, modality, *(int(y == 1) for y in labels)))
    return path
