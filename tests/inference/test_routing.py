"""Models that were trained on some modalities answer for those alone, each on the grid of its own spec."""

from __future__ import annotations

import numpy as np
import pytest

from aneurysm.errors import Reason, SeriesRejectedError, UsageError
from aneurysm.inference.predictor import load_predictor
from aneurysm.inference.read_series import Failure, read_path
from aneurysm.inference.routing import Route, Routing, groups_of
from aneurysm.inference.series_paths import find_paths
from aneurysm.spec import load_spec
from tests.support.acquisition import acquire
from tests.support.checkpoints import PREVALENCE, write_checkpoint
from tests.support.command import call_in_process
from tests.support.pattern import lone_blob
from tests.support.series import write_series
from tests.support.train_runs import table

FINE, COARSE = load_spec("rsna-head-0.5mm"), load_spec("rsna-1mm")


def routes(*modalities, specs=None):
    return tuple(Route(spec, m) for m, spec in zip(modalities, specs or [COARSE] * len(modalities), strict=True))


def test_a_modality_is_answered_by_all_that_know_it():
    routing = Routing(routes(("CTA",), ("CTA", "MRA"), ("MRI T2",)))
    assert [routing.models(m) for m in ("CTA", "MRA", "MRI T2")] == [(0, 1), (1,), (2,)]
    with pytest.raises(
        SeriesRejectedError, match="its modality is MRI T1post; the models were trained on CTA, MRA, MRI"
    ):
        routing.models("MRI T1post")
    assert groups_of(routing.routes) == [(0, 1), (1,), (2,)]


def test_where_the_header_tells_no_kind_all_of_the_family_answer():
    routing = Routing(routes(("CTA",), ("MRA",), ("MRI T2",)))
    assert routing.models("CT") == (0,)
    assert routing.models("MR") == (1, 2)
    assert Routing(routes(("MR",))).models("MRA") == (0,)
    assert Routing(routes(None)).models("unknown") == (0,)
    with pytest.raises(SeriesRejectedError) as caught:
        Routing(routes(("CTA",), ("MR",))).models("unknown")
    assert caught.value.reason == Reason.NO_MODEL
    apart = Routing(routes(("MRA",), ("MRI T2",), specs=(COARSE, FINE)))
    assert (apart.spec("MRA"), apart.spec("MRI T2")) == (COARSE, FINE)
    with pytest.raises(SeriesRejectedError, match="its modality is MR, of which kind is not told"):
        apart.models("MR")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A CT angiography, and an MR of a kind that its tags don't tell."""
    root = tmp_path_factory.mktemp("data")
    for uid, modality in (("1.2.1", "CT"), ("1.2.2", "MR")):
        acquisition = acquire("axial", slices=20)
        write_series(root / uid, acquisition, lone_blob(acquisition.lps(9, 9, 9)), uid=uid, modality=modality)
    return root


@pytest.fixture(scope="module")
def of(tmp_path_factory):
    """Checkpoints by name."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        "cta": write_checkpoint(root / "cta.ckpt", 0, modalities=["CTA"], spec=FINE.name),
        "cta too": write_checkpoint(root / "cta2.ckpt", 1, modalities=["CTA"], spec=FINE.name),
        "mra": write_checkpoint(root / "mra.ckpt", 2, modalities=["MRA"]),
        "both": write_checkpoint(root / "both.ckpt", 3, modalities=["CTA", "MRA"]),
    }


def test_each_series_is_read_with_the_spec_of_those_that_answer(data, of):
    predictor = load_predictor([of["cta"], of["mra"], of["cta too"]], candidates=0)
    ct, mr = predictor.predict(find_paths(data))
    for answer, alone in ((ct, [of["cta"], of["cta too"]]), (mr, [of["mra"]])):
        expected = load_predictor(alone, candidates=0)(data / answer.series_uid)
        assert np.allclose(answer.logits, expected.logits, atol=1e-5)
    spacing = [np.linalg.norm(read_path(path, predictor.routing).volume.affine_lps[:3, 0]) for path in find_paths(data)]
    assert spacing == pytest.approx([0.5, 1.0])


def test_checkpoints_that_know_one_modality_have_to_fit_together(of):
    with pytest.raises(UsageError, match=r"cta\.ckpt and .*both\.ckpt can't be ensembled: their cache spec"):
        load_predictor([of["cta"], of["both"]])


def test_a_series_that_nobody_answers_has_a_reason_and_base_rates_if_asked_for(data, of, tmp_path):
    (answer,) = load_predictor([of["mra"]]).predict(find_paths(data / "1.2.1"))
    assert isinstance(answer, Failure)
    assert (answer.status, answer.reason) == ("failed", "no_model")
    ran = call_in_process(
        "predict", of["mra"], data, "--candidates", 0, "--out", tmp_path / "x.csv", "--fallback", "prevalence"
    )
    assert ran.code == 8, ran.text
    assert "failed 1.2.1: no_model: its modality is CT; the models were trained on MRA" in ran.err
    ct, mr = table(tmp_path / "x.csv")
    assert (ct["status"], ct["reason"], float(ct["Aneurysm Present"])) == ("failed", "no_model", PREVALENCE[13])
    assert mr["status"] == "predicted"
