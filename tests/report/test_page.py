"""The report's files: they agree with each other, hold on their own, and let nothing in from names."""

import csv
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from aneurysm.errors import UsageError
from aneurysm.labels import LABELS
from aneurysm.report.curve_plots import curve_plots
from aneurysm.report.evaluate import evaluate
from aneurysm.report.evaluation import EvaluateOptions
from aneurysm.report.page import write_report
from aneurysm.report.plot_style import styled
from aneurysm.report.plots import draw_plots
from aneurysm.report.results import calibration_json, metrics_table
from aneurysm.report.score_plots import score_plots
from tests.support.fake_runs import fake_series, of_cache, write_run

PLOTS = (
    "auc", "calibration", "confusion", "froc", "histogram", "precision_recall", "precision_recall_sites", "roc",
    "roc_sites", "site_confusion", "training",
)  # fmt: skip


class _Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.targets, self.ids, self.tags = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                self.targets.append(value)
            if name == "id":
                self.ids.append(value)


def parsed(page):
    links = _Links()
    links.feed(page.read_text("utf-8"))
    return links


def test_the_page_needs_nothing_but_itself(report):
    page = report[1] / "report.html"
    links, text = parsed(page), page.read_text("utf-8")
    assert links.targets
    assert all(target.startswith(("data:image/jpeg;base64,", "#")) for target in links.targets)
    assert not {"script", "link", "iframe", "object", "embed"} & set(links.tags)
    assert not re.findall(r"url\((?!#)|@import", text)
    assert len(set(links.ids)) == len(links.ids)
    assert {t[1:] for t in links.targets if t.startswith("#")} <= set(links.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(links.ids)


def test_it_says_what_it_is_not_for_before_anything_else(report):
    body = (report[1] / "report.html").read_text("utf-8").split("<body>")[1]
    assert re.sub(r"<[^>]*>", "", body).strip().startswith("Not for clinical use")


def test_plots_are_there_as_png_and_svg(report):
    folder = report[1] / "plots"
    assert sorted(p.stem for p in folder.glob("*.png")) == sorted(PLOTS)
    for name in PLOTS:
        picture = np.asarray(Image.open(folder / f"{name}.png").convert("L"))
        assert picture.std() > 5
        assert ET.parse(folder / f"{name}.svg").getroot().tag.endswith("svg")


def test_sites_with_fewer_than_five_positives_have_no_band(report):
    found, _ = report
    (roc, precision) = (p.figure.axes for p in draw_plots(found) if p.name.endswith("_sites"))
    for label, *both in zip(found.ranking.labels[:13], roc, precision):
        assert [len(axes.collections) for axes in both] == [int(label.auc.low is not None)] * 2
    counts = [label.n_positive for label in found.ranking.labels[:13]]
    assert max(counts) >= 5 > min(counts)


def test_the_pages_plots_turn_dark_with_it(report):
    page = (report[1] / "report.html").read_text("utf-8")
    plots = re.findall(r"<svg .*?</svg>", page, re.DOTALL)
    assert len(plots) == len(PLOTS)
    for plot in plots:
        assert "var(--ink)" in plot
        # Other colours would stay as they are; white ones are only used to clip.
        assert set(re.findall(r"(?:fill|stroke): (#\w+)", plot)) <= {"#ffffff"}


def test_tables_agree(report):
    found, out = report
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["notice"] == "Not for clinical use"
    assert metrics["overall"]["score"]["value"] == found.ranking.score.value
    assert list(metrics["labels"]) == list(LABELS)
    assert set(metrics["by"]) == {"modality", "plane", "slice thickness"}
    assert set(metrics["froc"]["any_site"]["sensitivity_at"]) == {"0.25", "0.5", "1", "2", "4", "8"}
    with (out / "per_label.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == list(LABELS)
    for row in rows:
        label = metrics["labels"][row["label"]]
        assert int(row["n_positive"]) == label["n_positive"]
        for key in ("prevalence", "auc", "sensitivity", "ece_before"):
            value = label[key]["value"]
            assert row[key] == ("" if value is None else f"{value:.6g}")
        if label["counts"] is not None:
            assert int(row["true_positive"]) + int(row["false_negative"]) == int(row["n_positive"])
    calibration = json.loads((out / "calibration.json").read_text())
    present = calibration["labels"]["Aneurysm Present"]
    assert present["temperature"] == metrics["labels"]["Aneurysm Present"]["temperature"]
    logit = np.log(present["threshold"] / (1 - present["threshold"])) / present["temperature"]
    assert present["calibrated_threshold"] == pytest.approx(1 / (1 + np.exp(-logit)))
    assert calibration["digest"] == found.cache.spec.digest
    assert calibration["runs"] == [{"name": "run", "checkpoint": None}]
    assert calibration["averaged"] is False


def test_thresholds_without_a_temperature_stay_and_ranks_have_none(tmp_path):
    run = write_run(tmp_path / "run", fake_series(60, seed=1), n_folds=1)
    for ensemble in ("logits", "ranks"):
        found = evaluate([run], options=EvaluateOptions(samples=50, ensemble=ensemble))
        labels = json.loads(calibration_json(found))["labels"]
        rare = [name for name, x in labels.items() if x["temperature"] is None and x["threshold"] is not None]
        if ensemble == "logits":
            assert rare
            assert all(labels[name]["calibrated_threshold"] == labels[name]["threshold"] for name in rare)
            remark = metrics_table(found)["labels"][rare[0]]["remark"]
            assert "no temperature: fewer than 5 positives or negatives in one half" in remark
            page = write_report(found, tmp_path / "out", cases=0).read_text("utf-8")
            assert "<b>No temperature</b> (fewer than 5 positives or negatives in one half of the patients): " in page
        else:
            assert not rare
            assert all(set(x.values()) == {None} for x in labels.values())


def test_names_are_no_markup(tmp_path):
    series = fake_series(60)
    series.modalities[:] = ["<b>$x^$</b>"] * 60
    roots = [write_run(tmp_path / f"<img src=x>$_${k}", series, fold=k, n_folds=2, cache="<script>") for k in range(2)]
    page = write_report(evaluate(roots, options=EvaluateOptions(samples=50)), tmp_path / "out")
    links = parsed(page)
    assert "img" not in links.tags
    assert "script" not in links.tags
    assert "&lt;b&gt;$x^$&lt;/b&gt;" in page.read_text()


def test_little_data_makes_a_report_nonetheless(tmp_path):
    series = fake_series(6, prevalence=0.3)
    series.labels[:] = 0
    run = write_run(tmp_path / "run", series, n_folds=1)
    (run / "metrics.csv").unlink()
    found = evaluate([run], options=EvaluateOptions(samples=50, ensemble="ranks"))
    assert found.ranking.score.value is None
    page = write_report(found, tmp_path / "out").read_text()
    assert "Aneurysm Present (0 of 6 positive)" in page
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["overall"]["score"]["value"] is None


def test_a_place_that_can_t_be_written(report, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="can't be written"):
        write_report(report[0], tmp_path / "file")


def _figure(evaluation, name):
    with styled():
        return next(plot.figure for plot in score_plots(evaluation) if plot.name == name)


def test_a_course_of_one_epoch_is_a_dot(report_cache, tmp_path):
    run = write_run(tmp_path / "run", of_cache(report_cache), n_folds=1, cache=report_cache.root, epochs=1)
    upper, lower = _figure(evaluate([run], options=EvaluateOptions(samples=40)), "training").axes
    assert [line.get_marker() for line in (*upper.lines, *lower.lines)] == ["o", "."]
    assert all(float(tick).is_integer() for tick in lower.get_xticks())


def test_labels_without_a_threshold_have_squares_as_large_as_the_others(report):
    figure = _figure(report[0], "confusion")
    figure.draw_without_rendering()
    shown = [axes for axes in figure.axes if axes.get_title()]
    without = [axes for axes in shown if any(text.get_text() == "no threshold" for text in axes.texts)]
    assert 0 < len(without) < len(shown)
    sizes = {axes: axes.get_window_extent().size for axes in shown}
    for size in sizes.values():
        assert size[0] == pytest.approx(size[1], rel=0.02)
        assert size[0] > 0.9 * max(s[0] for s in sizes.values())


def test_no_text_of_a_plot_is_cut(report, report_cache, tmp_path):
    """All that is drawn lies within the figure, also of a run with a long name."""
    run = write_run(tmp_path / ("long" * 30), of_cache(report_cache), n_folds=1, cache=report_cache.root)
    with styled():
        plots = curve_plots(report[0]) + score_plots(evaluate([run], options=EvaluateOptions(samples=40)))
        assert len(plots) > 6
        for plot in plots:
            plot.figure.draw_without_rendering()
            drawn, (width, height) = plot.figure.get_tightbbox(), plot.figure.get_size_inches()
            assert drawn.x0 > -0.01, plot.name
            assert drawn.y0 > -0.01, plot.name
            assert drawn.x1 < width + 0.01, plot.name
            assert drawn.y1 < height + 0.01, plot.name
