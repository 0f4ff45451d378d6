"""Plans: shares as in train.csv, quirks that fit together, and one plan for one seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from pydicom.uid import UID

from aneurysm.errors import Reason, UsageError
from aneurysm.labels import MODALITIES, SITES
from aneurysm.phantom.plan import COVERED_FROM, make_uid, plan_dataset, plan_series
from aneurysm.phantom.quirks import QUIRKS, conflict


def test_shares_of_modalities_positives_and_sites_are_those_of_the_real_set() -> None:
    plans = plan_dataset(4348, seed=1)
    modalities = Counter(p.modality for p in plans)
    assert [modalities[m] for m in MODALITIES] == [1808, 1252, 983, 305]
    assert sum(bool(p.sites) for p in plans) == 1864
    sites = Counter(s for p in plans for s in p.sites)
    assert sites["Anterior Communicating Artery"] == max(sites.values())
    assert sites["Left Anterior Cerebral Artery"] == min(sites.values())
    assert sites["Anterior Communicating Artery"] == pytest.approx(366, abs=10)
    assert sites["Left Anterior Cerebral Artery"] == pytest.approx(46, abs=4)
    assert all(len(set(p.sites)) == len(p.sites) for p in plans)


@pytest.mark.parametrize("n", [1, 2, 7, 24])
def test_small_sets_have_the_shares_as_nearly_as_whole_numbers_allow(n: int) -> None:
    plans = plan_dataset(n, seed=3)
    counts = Counter(p.modality for p in plans)
    for modality, share in zip(MODALITIES, (1808, 1252, 983, 305), strict=True):
        assert abs(counts[modality] - n * share / 4348) < 1
    assert abs(sum(bool(p.sites) for p in plans) - n * 1864 / 4348) <= 0.5


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_large_set_has_every_quirk_and_no_conflict(seed: int) -> None:
    plans = plan_dataset(COVERED_FROM, seed)
    assert {q for p in plans for q in p.quirks} == set(QUIRKS)
    for plan in plans:
        assert conflict(plan.quirks, plan.modality, marked=bool(plan.sites)) == ""
    assert max(len(p.quirks) for p in plans) >= 2, "no series has several quirks"


def test_without_quirks_there_are_none() -> None:
    assert [plan.quirks for plan in plan_dataset(200, quirks=False)] == [()] * 200


def test_a_plan_depends_on_the_seed_and_on_nothing_else() -> None:
    assert plan_dataset(40, 5) == plan_dataset(40, 5)
    assert plan_dataset(40, 5) != plan_dataset(40, 6)


def test_every_refusal_names_one_reason_and_excludes_the_others() -> None:
    refusals = [q for q in QUIRKS.values() if q.rejects]
    assert {q.rejects for q in refusals} <= set(Reason)
    for quirk in refusals:
        other = next(q for q in refusals if q is not quirk and set(q.modalities) & set(quirk.modalities))
        modality = next(m for m in quirk.modalities if m in other.modalities)
        assert "exclude" in conflict([quirk.name, other.name], modality, marked=True)


def test_uids_are_valid_and_differ() -> None:
    uids = {make_uid(seed, i, "slice", k) for seed in range(3) for i in range(10) for k in range(50)}
    assert len(uids) == 1500
    assert all(UID(u).is_valid for u in uids)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modality": "PET"}, "unknown modality 'PET'"),
        ({"size": "huge"}, "unknown size 'huge'"),
        ({"sites": ("Nose",)}, "unknown aneurysm site 'Nose'"),
        ({"quirks": ("blurred",)}, "unknown quirk 'blurred'"),
        ({"quirks": ("multiframe",)}, "multiframe does not occur in CTA"),
        ({"quirks": ("tilt", "sagittal")}, "exclude each other"),
        ({"quirks": ("no_localizer",)}, "needs an aneurysm"),
        ({"modality": "MRA", "quirks": ("multiframe", "scouts")}, "needs single-frame files"),
        ({"difficulty": 0.0}, "difficulty"),
        ({"seed": -1}, "seed"),
    ],
    ids=lambda v: "-".join(map(str, v)) if isinstance(v, dict) else "",
)
def test_wrong_plans_are_refused_with_what_is_wrong(arguments: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_series(**arguments)


def test_a_plan_keeps_its_quirks_in_the_order_of_the_table() -> None:
    plan = plan_series(modality="MRA", sites=SITES[:1], quirks=("rle", "mask", "oblique"))
    assert plan.quirks == ("oblique", "rle", "mask")


def test_the_documentation_lists_every_quirk_and_what_becomes_of_it() -> None:
    text = (Path(__file__).parents[2] / "docs" / "phantom.md").read_text().partition("## Quirks")[2]
    for quirk in QUIRKS.values():
        fate = f"rejects: `{quirk.rejects}`" if quirk.rejects else "caches"
        line = next(line for line in text.splitlines() if line.startswith(f"| `{quirk.name}` |"))
        assert quirk.about in line
        assert line.endswith(f"| {fate} |")
