"""Evaluation -> metrics.json, per_label.csv and calibration.json."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from aneurysm._version import __version__
from aneurysm.csv_table import csv_text
from aneurysm.inference import calibration
from aneurysm.labels import LABELS
from aneurysm.probability import apply_temperature
from aneurysm.report.evaluation import Evaluation
from aneurysm.report.froc import BY_GROUP_RATE, Froc
from aneurysm.report.intervals import Estimate
from aneurysm.report.ranking import Ranking
from aneurysm.report.thresholds import OperatingPoint

METRICS_FORMAT = 1
NOTICE = "Not for clinical use"

_COLUMNS = (
    "label", "n", "n_positive", "prevalence", "prevalence_low", "prevalence_high", "auc", "auc_low", "auc_high",
    "average_precision", "average_precision_low", "average_precision_high", "threshold", "threshold_reached",
    "sensitivity", "sensitivity_low", "sensitivity_high", "specificity", "specificity_low", "specificity_high",
    "precision", "precision_low", "precision_high", "f1", "f1_low", "f1_high", "true_positive", "false_negative",
    "false_positive", "true_negative", "temperature", "ece_before", "ece_before_low", "ece_before_high", "ece_after",
    "ece_after_low", "ece_after_high", "remark",
)  # fmt: skip


def metrics_table(e: Evaluation) -> dict[str, Any]:
    """Return all numbers as plain values, for JSON: what is unknown is null."""
    p, o = e.predictions, e.options
    return {
        "format_version": METRICS_FORMAT,
        "package_version": __version__,
        "notice": NOTICE,
        "options": {
            "ensemble": o.ensemble, "target_precision": o.target_precision, "match_radius_mm": o.match_radius_mm,
            "samples": o.samples, "seed": o.seed,
        },
        "data": {
            "series": len(p),
            "patients": e.ranking.n_patients,
            "part": e.part,
            "folds": sorted({int(f) for f in p.folds}),
            "spec": None if e.digest is None else {
                "name": None if e.cache is None else e.cache.spec.name, "digest": e.digest,
            },
        },
        "runs": [
            {"name": r.run.name, "folds": sorted({int(f) for f in r.run.predictions.folds}), "fresh": r.run.fresh,
             "remark": r.run.remark, **_ranking(r.ranking), "ensemble_gain": None if r.gain is None else asdict(r.gain)}
            for r in e.runs
        ],
        "overall": {
            **_ranking(e.ranking),
            "site_average_precision": asdict(e.ranking.site_average_precision),
            "micro_auc": asdict(e.ranking.micro_auc),
            "micro_average_precision": asdict(e.ranking.micro_average_precision),
            **{f"macro_{name}": value for name, value in asdict(e.operation.macro).items()},
            **{f"micro_{name}": value for name, value in asdict(e.operation.micro).items()},
            "one_class": [label.label for label in e.ranking.left_out],
        },
        "labels": {name: _label(e, i) for i, name in enumerate(LABELS)},
        "by": {
            by: {name: {**_ranking(r), "present": asdict(e.decisions[by][name])} for name, r in classes.items()}
            for by, classes in e.groupings.items()
        },
        "froc": {"missing": e.no_froc} if e.froc is None or e.froc_same_site is None else {
            "any_site": _froc(e.froc), "same_site": _froc(e.froc_same_site),
        },
    }  # fmt: skip


def metrics_json(e: Evaluation) -> str:
    """Return `metrics_table` as JSON."""
    return json.dumps(metrics_table(e), indent=1, allow_nan=False) + "\n"


def per_label_csv(e: Evaluation) -> str:
    """Return a table with a row per label, empty where a value is unknown."""
    rows = []
    for i, name in enumerate(LABELS):
        row: dict[str, Any] = {"label": name}
        for key, value in _label(e, i).items():
            if isinstance(value, dict) and {"value", "low", "high"} <= set(value):
                row |= {key: value["value"], f"{key}_low": value["low"], f"{key}_high": value["high"]}
            elif key == "counts":
                row |= value or {}
            elif key in _COLUMNS:
                row[key] = value
        # A threshold has all its digits: rounded, it decides otherwise about the series that it was taken from.
        rows.append(
            {k: f"{v:.6g}" if isinstance(v, float) and k != "threshold" else v for k, v in row.items() if v is not None}
        )
    return csv_text(_COLUMNS, rows)


def calibration_json(e: Evaluation) -> str:
    """
    Return what predicting takes from an evaluation: a temperature and a threshold for each label, null where none.

    ``threshold`` is of probabilities as the model gives them, ``calibrated_threshold`` the same after the temperature,
    if there is one. Thresholds of means of ranks are none of probabilities, and left out.
    `aneurysm.inference.calibration` reads it.
    """
    labels = {}
    for i, name in enumerate(LABELS):
        temperature = None if e.calibration is None else e.calibration.labels[i].temperature
        threshold = e.operation.labels[i].threshold
        value = None if threshold is None or e.calibration is None else threshold.value
        calibrated = value
        if value is not None and temperature is not None:
            calibrated = float(apply_temperature(value, temperature))
        labels[name] = {"temperature": temperature, "threshold": value, "calibrated_threshold": calibrated}
    content = {
        "format_version": calibration.CALIBRATION_FORMAT,
        "runs": [{"name": r.run.name, "checkpoint": r.run.checkpoint} for r in e.runs],
        "averaged": e.ensembled,
        "digest": e.digest,
        "labels": labels,
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _ranking(r: Ranking) -> dict[str, Any]:
    return {
        "series": r.n,
        "patients": r.n_patients,
        "score": asdict(r.score),
        "present_auc": asdict(r.present_auc),
        "site_auc": asdict(r.site_auc),
        "sites_in_mean": sum(not label.one_class for label in r.labels[:-1]),
    }


def _label(e: Evaluation, i: int) -> dict[str, Any]:
    ranking, point = e.ranking.labels[i], e.operation.labels[i]
    remarks = ["one class only"] if ranking.one_class else []
    if point.missing and not ranking.one_class:
        remarks.append(point.missing)
    if not _all_reached(point):
        remarks.append("the target precision was out of reach")
    if e.calibration is not None and not ranking.one_class and e.calibration.labels[i].missing:
        remarks.append(f"no temperature: {e.calibration.labels[i].missing}")
    values: dict[str, Any] = {
        "n": ranking.n,
        "n_positive": ranking.n_positive,
        "prevalence": asdict(ranking.prevalence),
        "auc": asdict(ranking.auc),
        "average_precision": asdict(ranking.average_precision),
        "threshold": None if point.threshold is None else point.threshold.value,
        "threshold_rule": point.rule,
        "threshold_reached": None if point.threshold is None else _all_reached(point),
        "threshold_halves": None if point.halves is None else [half.value for half in point.halves],
        **asdict(point.rates),
        "counts": None if point.counts is None else asdict(point.counts),
        "temperature": None,
        "ece_before": asdict(Estimate(None)),
        "ece_after": asdict(Estimate(None)),
        "remark": "; ".join(remarks),
    }
    if e.calibration is not None:
        calibrated = e.calibration.labels[i]
        values |= {
            "temperature": calibrated.temperature,
            "ece_before": asdict(calibrated.ece_before),
            "ece_after": asdict(calibrated.ece_after),
        }
    return values


def _all_reached(point: OperatingPoint) -> bool:
    return all(t.reached for t in (point.threshold, *(point.halves or ())) if t is not None)


def _froc(f: Froc) -> dict[str, Any]:
    return {
        "scans": f.n_scans,
        "lesions": f.n_lesions,
        "lesions_outside_volume": f.n_outside,
        "sensitivity_at": {f"{rate:g}": asdict(value) for rate, value in f.at.items()},
        "mean_sensitivity": asdict(f.mean),
        f"by_site_at_{BY_GROUP_RATE:g}": {g.name: {"lesions": g.n_lesions, **asdict(g.sensitivity)} for g in f.by_site},
        f"by_size_at_{BY_GROUP_RATE:g}": {g.name: {"lesions": g.n_lesions, **asdict(g.sensitivity)} for g in f.by_size},
    }
