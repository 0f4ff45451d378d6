"""`python -m benchmarks.intervals`: how often 95 % intervals hold the truth, by kind.

Scores are drawn whose true AUC, average precision, sensitivity or calibration error is known, with one or two series of
a patient; each kind of interval is made of each draw, and it is counted how often the truth lies in it. It needs no
data, and takes some ten minutes on one core. Prints Markdown; `--write` puts it into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import norm
from sklearn.metrics import average_precision_score

from aneurysm.report.bootstrap import patient_weights, ranked_samples
from aneurysm.report.calibration import calibration_error
from aneurysm.report.intervals import (
    Estimate,
    auc_estimate,
    auc_influence,
    combined,
    left_out_weights,
    mean_estimate,
    mean_of,
    precision_estimate,
    share_estimate,
    share_influence,
)
from benchmarks.table import Target, aims, command_line, machine, write_section

SITES = 13
_SITE_SHARES = np.array([4, 5, 15, 14, 11, 14, 18, 3, 3, 4, 5, 6, 6], float) / 108
_TRUTH_FROM = 400_000
_NOTES = """\
Coverage in %, and the mean width. In bold the kind that reports give. Scores are normal; "wide" positives have twice
the standard deviation of negatives, of "mixed" ones four in ten look like negatives. Clusters are two series of a
patient with correlated scores. The mean over sites is of 13, with positives as in the competition's data. An interval
that can't be made, as of a logarithm of perfect ranks, counts as one that misses.
"""

Interval = tuple[float, float]
Draw = Iterator[tuple[str, Interval]]


@dataclass
class Counted:
    """How often intervals of one kind held the truth, and how wide they were."""

    held: list[bool] = field(default_factory=list)
    widths: list[float] = field(default_factory=list)

    def add(self, interval: Interval, truth: float) -> None:
        """Count one."""
        low, high = interval
        self.held.append(bool(low <= truth <= high))
        if np.isfinite(high - low):
            self.widths.append(high - low)

    @property
    def coverage(self) -> float:
        """Per cent."""
        return 100 * float(np.mean(self.held))


def main() -> int:
    """Draw, count, print, and say if what reports give covers."""
    options = _options()
    tables = {
        "AUC of a label": _auc_rows(options),
        "Average precision of a label": _precision_rows(options),
        "Means over the sites, and the score": _macro_rows(options),
        "Shares: sensitivity, specificity, precision": _share_rows(options),
        "Expected calibration error": _error_rows(options),
    }
    worst = {title: min(row[used].coverage for _, row, used in rows) for title, rows in tables.items()}
    targets = [
        Target(f"{title}: at least {least} % everywhere", f"{worst[title]:.0f} %", worst[title] >= least)
        for title, least in zip(tables, (88, 80, 88, 91, 91), strict=True)
    ]
    lines = ["# Do intervals cover?", ""]
    lines += [f"- {key}: {value}" for key, value in machine(("aneurysm", "numpy", "scipy", "scikit-learn")).items()]
    lines += [
        (
            f"- {options.rounds} draws a row (means over sites: {options.rounds // 4}), {options.samples} bootstrap "
            "samples each"
        ),
        f"- command: `{command_line('benchmarks.intervals')}`",
        "",
        _NOTES,
        *aims(targets),
    ]
    for title, rows in tables.items():
        lines += ["", f"## {title}", "", *_table(rows)]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        write_section(text)
    return 0 if all(target.met for target in targets) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=400, help="draws for each row")
    parser.add_argument("--samples", type=int, default=200, help="of the bootstrap")
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/RESULTS.md")
    return parser.parse_args()


Row = tuple[str, dict[str, Counted], str]


def _table(rows: list[Row]) -> list[str]:
    kinds = list(rows[0][1])
    lines = ["| | " + " | ".join(kinds) + " |", "|---|" + "--:|" * len(kinds)]
    for name, found, used in rows:
        cells = []
        for kind in kinds:
            cell = f"{found[kind].coverage:.0f} ({np.mean(found[kind].widths or [np.nan]):.2f})"
            cells.append(f"**{cell}**" if kind == used else cell)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _count(name: str, draw: Callable[[], Draw], truth: float, rounds: int, used: str) -> Row:
    found: dict[str, Counted] = {}
    for _ in range(rounds):
        for kind, interval in draw():
            found.setdefault(kind, Counted()).add(interval, truth)
    print(f"{name}: " + ", ".join(f"{k} {c.coverage:.0f}" for k, c in found.items()), file=sys.stderr, flush=True)
    return name, found, used


def _ends(estimate: Estimate) -> Interval:
    if estimate.low is None or estimate.high is None:
        return np.nan, np.nan
    return estimate.low, estimate.high


def _percentiles(samples: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(samples[np.isfinite(samples)], [2.5, 97.5])
    return float(low), float(high)


def _basic(value: float, percentiles: Interval) -> Interval:
    return 2 * value - percentiles[1], 2 * value - percentiles[0]


def _scores(
    rng: np.random.Generator, positive: NDArray[np.bool_], shift: float, kind: str, per_patient: int
) -> NDArray[np.float64]:
    n = len(positive)
    noise = rng.normal(size=n)
    if per_patient > 1:
        noise = np.sqrt(0.6) * np.repeat(rng.normal(size=n // per_patient), per_patient) + np.sqrt(0.4) * noise
    if kind == "wide":
        return np.where(positive, 2 * noise + shift, noise)
    if kind == "mixed":
        return noise + positive * shift * (rng.random(n) < 0.6)
    return noise + positive * shift


def _true_auc(shift: float, kind: str) -> float:
    if kind == "wide":
        return float(norm.cdf(shift / np.sqrt(5)))
    found = float(norm.cdf(shift / np.sqrt(2)))
    return 0.6 * found + 0.2 if kind == "mixed" else found


_SETTINGS = (
    (5, 200, 1.2, "normal", 1), (5, 200, 2.5, "normal", 1), (5, 200, 3.0, "wide", 1), (5, 200, 3.0, "mixed", 1),
    (10, 200, 1.2, "normal", 1), (10, 200, 2.5, "normal", 1), (10, 200, 3.0, "wide", 1), (15, 800, 1.8, "normal", 1),
    (30, 200, 1.2, "normal", 1), (30, 200, 2.5, "normal", 1), (100, 200, 1.8, "normal", 1),
    (10, 200, 1.2, "normal", 2), (20, 200, 2.5, "normal", 2), (60, 200, 1.8, "normal", 2),
)  # fmt: skip


def _auc_rows(options: argparse.Namespace) -> list[Row]:
    rows = []
    for seed, (m, negatives, shift, kind, per) in enumerate(_SETTINGS):
        rng = np.random.default_rng(seed)
        positive, patients = np.arange(m + negatives) < m, np.arange(m + negatives) // per
        truth = _true_auc(shift, kind)

        def draw(
            rng: np.random.Generator = rng, positive: NDArray[np.bool_] = positive,
            patients: NDArray[np.int64] = patients, shift: float = shift, kind: str = kind, per: int = per,
        ) -> Draw:  # fmt: skip
            scores = _scores(rng, positive, shift, kind, per)
            found = auc_influence(positive, scores, patients, len(positive) // per)
            weights = patient_weights(patients.astype(str), options.samples, int(rng.integers(2**31)))
            samples = ranked_samples(positive, scores, weights, np.arange(len(positive))).auc()
            value = found.influence.value
            yield "percentile", _percentiles(samples)
            yield "basic", _basic(value, _percentiles(samples))
            yield "logit DeLong", _logit_interval(value, float((found.influence.effects**2).sum()))
            yield "Newcombe, widened", _ends(auc_estimate(found))

        name = f"{m} of {m + negatives} positive, AUC {truth:.2f}, {kind}" + (", clusters" if per > 1 else "")
        rows.append(_count(name, draw, truth, options.rounds, "Newcombe, widened"))
    return rows


def _logit_interval(value: float, variance: float) -> Interval:
    if not 0 < value < 1:
        return np.nan, np.nan
    half = 1.96 * np.sqrt(variance) / (value * (1 - value))
    return float(expit(logit(value) - half)), float(expit(logit(value) + half))


def _precision_rows(options: argparse.Namespace) -> list[Row]:
    rows = []
    for seed, (m, negatives, shift, kind, per) in enumerate(_SETTINGS):
        rng = np.random.default_rng([1, seed])
        n = m + negatives
        many = rng.random(_TRUTH_FROM) < m / n
        truth = float(average_precision_score(many, _scores(rng, many, shift, kind, 1)))

        def draw(
            rng: np.random.Generator = rng, m: int = m, n: int = n, shift: float = shift, kind: str = kind,
            per: int = per,
        ) -> Draw:  # fmt: skip
            positive, patients = np.arange(n) < m, np.arange(n) // per
            scores = _scores(rng, positive, shift, kind, per)
            value = float(average_precision_score(positive, scores))
            weights = patient_weights(patients.astype(str), options.samples, int(rng.integers(2**31)))
            found = _percentiles(ranked_samples(positive, scores, weights, np.arange(n)).average_precision())
            without = ranked_samples(
                positive, scores, left_out_weights(patients, n // per), np.arange(n)
            ).average_precision()
            yield "percentile", found
            yield "basic", _basic(value, found)
            yield "jackknife, log-odds", _ends(precision_estimate(value, without, m // per))

        name = f"{m} of {n} positive, AP {truth:.2f}, {kind}" + (", clusters" if per > 1 else "")
        rows.append(_count(name, draw, truth, options.rounds, "jackknife, log-odds"))
    return rows


def _series(
    rng: np.random.Generator, n: int, prevalence: float, shifts: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return truth and scores (n, 14), present last; a series has one site or two."""
    truth = np.zeros((n, SITES + 1), bool)
    present = np.flatnonzero(rng.random(n) < prevalence)
    ranks = np.argsort(rng.exponential(size=(len(present), SITES)) / _SITE_SHARES, axis=1)
    truth[present, ranks[:, 0]] = True
    second = rng.random(len(present)) < 0.2
    truth[present[second], ranks[second, 1]] = True
    truth[present, SITES] = True
    difficulty = 1 + rng.normal(0, 0.5, (n, 1))
    return truth, rng.normal(size=truth.shape) + shifts * truth * difficulty + 0.3 * rng.normal(size=(n, 1))


def _macro_rows(options: argparse.Namespace) -> list[Row]:
    rows = []
    for seed, (n, prevalence, shift) in enumerate(((300, 0.43, 1.2), (300, 0.43, 2.2), (870, 0.43, 1.2))):
        rng = np.random.default_rng([2, seed])
        shifts = shift * np.r_[np.linspace(0.7, 1.3, SITES), 1.0]
        truth, scores = _series(rng, _TRUTH_FROM, prevalence, shifts)
        aucs = [auc_influence(truth[:, i], scores[:, i], np.zeros(_TRUTH_FROM, int), 1) for i in range(SITES + 1)]
        true_auc = np.array([found.influence.value for found in aucs])
        true_precision = np.array([average_precision_score(truth[:, i], scores[:, i]) for i in range(SITES)])
        counted: dict[str, dict[str, Counted]] = {"AUC": {}, "score": {}, "AP": {}}
        for _ in range(options.rounds // 4):
            _count_macro(rng, n, prevalence, shifts, true_auc, true_precision, counted, options)
        for what, found in counted.items():
            name = f"{what}, {n} series, mean AUC {true_auc[:SITES].mean():.2f}, AP {true_precision.mean():.2f}"
            rows.append((name, found, "by patient"))
            text = ", ".join(f"{k} {c.coverage:.0f}" for k, c in found.items())
            print(f"{name}: {text}", file=sys.stderr, flush=True)
    return rows


def _count_macro(
    rng: np.random.Generator,
    n: int,
    prevalence: float,
    shifts: NDArray[np.float64],
    true_auc: NDArray[np.float64],
    true_precision: NDArray[np.float64],
    counted: dict[str, dict[str, Counted]],
    options: argparse.Namespace,
) -> None:
    truth, scores = _series(rng, n, prevalence, shifts)
    series = np.arange(n)
    weights = patient_weights(series.astype(str), options.samples, int(rng.integers(2**31)))
    left_out = left_out_weights(series, n)
    sites = [i for i in range(SITES) if truth[:, i].any()]
    drawn = {i: ranked_samples(truth[:, i], scores[:, i], weights, series) for i in [*sites, SITES]}
    found = {i: auc_influence(truth[:, i], scores[:, i], series, n).influence for i in [*sites, SITES]}
    values = [float(average_precision_score(truth[:, i], scores[:, i])) for i in sites]
    without = [ranked_samples(truth[:, i], scores[:, i], left_out, series).average_precision() for i in sites]
    each = [np.where(np.isfinite(w), w, value) for w, value in zip(without, values, strict=True)]
    behind = int(truth[:, sites].any(axis=1).sum())
    mean = mean_of([found[i] for i in sites], behind)
    score = combined([found[SITES], mean], [0.5, 0.5], behind)
    with np.errstate(invalid="ignore"):
        of_auc = np.nanmean([drawn[i].auc() for i in sites], axis=0)
        of_precision = np.nanmean([drawn[i].average_precision() for i in sites], axis=0)
    of_score = 0.5 * (drawn[SITES].auc() + of_auc)
    mean_truth = float(true_auc[sites].mean())
    precision = precision_estimate(float(np.mean(values)), np.mean(each, axis=0), behind, mean=True)
    for what, value, samples, ours, target in (
        ("AUC", mean.value, of_auc, mean_estimate(mean), mean_truth),
        ("score", score.value, of_score, mean_estimate(score), 0.5 * (float(true_auc[SITES]) + mean_truth)),
        ("AP", float(np.mean(values)), of_precision, precision, float(true_precision[sites].mean())),
    ):
        ends = _percentiles(samples)
        for kind, interval in (("percentile", ends), ("basic", _basic(value, ends)), ("by patient", _ends(ours))):
            counted[what].setdefault(kind, Counted()).add(interval, target)


def _share_rows(options: argparse.Namespace) -> list[Row]:
    rows = []
    for seed, (n, truth, per) in enumerate(
        ((6, 0.8, 1), (12, 0.9, 1), (30, 0.7, 1), (100, 0.95, 1), (20, 0.8, 2), (60, 0.7, 3), (200, 0.9, 2))
    ):
        rng = np.random.default_rng([3, seed])

        def draw(rng: np.random.Generator = rng, n: int = n, truth: float = truth, per: int = per) -> Draw:
            # Two of a patient agree as with a correlation of 0.5.
            chance = rng.beta(truth, 1 - truth, n // per) if per > 1 else np.full(n, truth)
            patients = np.arange(n) // per
            hits = (rng.random(n) < chance[patients]).astype(float)
            weights = patient_weights(patients.astype(str), options.samples, int(rng.integers(2**31)))
            yield "percentile", _percentiles((weights @ hits) / weights.sum(axis=1))
            found = share_estimate(share_influence(hits, np.ones(n), patients, n // per), n)
            yield "Wilson, by patient", _ends(found)

        name = f"{truth:g} of {n}" + (f", {per} of a patient" if per > 1 else "")
        rows.append(_count(name, draw, truth, options.rounds, "Wilson, by patient"))
    return rows


def _error_rows(options: argparse.Namespace) -> list[Row]:
    rows = []
    for seed, (n, sharper) in enumerate(((100, 1.0), (300, 1.0), (1000, 1.0), (300, 1.3), (300, 2.0), (1000, 3.0))):
        rng = np.random.default_rng([4, seed])
        logits = rng.normal(-0.5, 1.5, _TRUTH_FROM)
        given = expit(sharper * logits)
        bins = np.minimum((given * 15).astype(int), 14)
        truth = float(np.abs(np.bincount(bins, given - expit(logits), 15)).sum() / _TRUTH_FROM)

        def draw(rng: np.random.Generator = rng, n: int = n, sharper: float = sharper) -> Draw:
            logits = rng.normal(-0.5, 1.5, n)
            positive, given = rng.random(n) < expit(logits), expit(sharper * logits)
            yield "percentile", _error_percentiles(rng, positive, given, options.samples)
            yield "folded", _ends(calibration_error(positive, given, np.arange(n)))

        rows.append(_count(f"{n} series, true error {truth:.3f}", draw, truth, options.rounds, "folded"))
    return rows


def _error_percentiles(
    rng: np.random.Generator, positive: NDArray[np.bool_], given: NDArray[np.float64], samples: int
) -> Interval:
    bins = np.minimum((given * 15).astype(int), 14)
    drawn = rng.integers(len(given), size=(samples, len(given)))
    found = [np.abs(np.bincount(bins[d], given[d] - positive[d], 15)).sum() / len(given) for d in drawn]
    return _percentiles(np.array(found))


if __name__ == "__main__":
    sys.exit(main())
