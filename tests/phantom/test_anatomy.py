"""Vessels and sacs: on their side, on their parent, of the size asked for."""

from __future__ import annotations

import numpy as np
import pytest

from aneurysm.errors import UsageError
from aneurysm.labels import SITES, VESSEL_VALUES
from aneurysm.phantom.aneurysms import LARGEST_MM, SMALLEST_MM, grow_lesions
from aneurysm.phantom.branches import centreline
from aneurysm.phantom.randomness import Streams
from aneurysm.phantom.vessels import grow_tree

PARENTS = {
    "Infraclinoid": ("ica_infra",),
    "Supraclinoid": ("ica_supra",),
    "Middle": ("m1", "m2_upper", "m2_lower"),
    "Anterior Communicating": ("acom",),
    "Anterior Cerebral": ("a1", "a2"),
    "Posterior Communicating": ("pcom",),
    "Basilar Tip": ("basilar_tip",),
    "Other": ("basilar", "va", "p1", "pca", "sca"),
}


@pytest.mark.parametrize("site", SITES)
def test_a_sac_sits_on_the_vessel_of_its_site_and_side(site: str) -> None:
    parents = next(v for k, v in PARENTS.items() if k in site)
    for seed in range(12):
        tree = grow_tree(Streams(seed, 0)("vessels"), frozenset({site}))
        (sac,) = grow_lesions(tree, (site,), Streams(seed, 0)("lesions"), 1.0)
        branch = tree.branches[sac.parent]
        assert sac.parent.removeprefix("left_").removeprefix("right_") in parents
        distance = np.linalg.norm(branch.points - sac.center, axis=1)
        nearest = int(distance.argmin())
        # Its wall opens into the parent: the centre is off the centreline by less than both radii together.
        assert branch.radii[nearest] < distance[nearest] < branch.radii[nearest] + sac.radii.max()
        assert sac.value == VESSEL_VALUES[SITES.index(site)]
        if site.startswith(("Left", "Right")):
            assert sac.center[0] * (1 if site.startswith("Left") else -1) > 0
            assert branch.value == sac.value, "the parent bears the site's value"


def test_diameters_lie_between_2_and_12_mm_and_shrink_with_difficulty() -> None:
    tree = grow_tree(Streams(0, 0)("vessels"))
    sizes = {}
    for difficulty in (0.5, 1.0, 2.0):
        rng = Streams(0, 1)("lesions")
        sizes[difficulty] = [2 * grow_lesions(tree, ("Basilar Tip",), rng, difficulty)[0].radius_mm for _ in range(200)]
        assert min(sizes[difficulty]) >= SMALLEST_MM * 0.99
        assert max(sizes[difficulty]) <= LARGEST_MM * 1.01
    assert np.median(sizes[0.5]) > np.median(sizes[1.0]) > np.median(sizes[2.0])
    assert np.median(sizes[1.0]) == pytest.approx(5.5, abs=0.6)


def test_heads_differ_in_what_vessels_they_have() -> None:
    trees = [grow_tree(Streams(seed, 0)("vessels")) for seed in range(60)]
    features = {f.split("_", 1)[1] for t in trees for f in t.features}
    assert {"pcom_absent", "pca_fetal", "pcom_infundibulum", "a1_hypoplastic"} <= features
    assert any("loop" in f for f in features)
    absent = np.mean([f"{side}_pcom" not in t.branches for t in trees for side in ("left", "right")])
    assert 0.1 < absent < 0.45


def test_a_needed_artery_is_never_absent() -> None:
    site = "Right Posterior Communicating Artery"
    for seed in range(40):
        assert "right_pcom" in grow_tree(Streams(seed, 0)("vessels"), frozenset({site})).branches


def test_vessels_hang_together() -> None:
    tree = grow_tree(Streams(3, 0)("vessels"))
    for side in ("left", "right"):
        b = {k: tree.branches[f"{side}_{k}"] for k in ("ica_infra", "ica_supra", "m1", "a1", "a2", "p1", "pca")}
        for first, second in (("ica_infra", "ica_supra"), ("ica_supra", "m1"), ("ica_supra", "a1"), ("a1", "a2")):
            assert np.allclose(b[first].points[-1], b[second].points[0], atol=1e-6)
        assert np.allclose(b["p1"].points[-1], b["pca"].points[0], atol=1e-6)


def test_a_centreline_goes_through_its_ends_in_small_steps() -> None:
    points, radii = centreline([(0, 0, 0), (10, 0, 0), (10, 10, 0)], [2, 1, 1], np.random.default_rng(0), 1.0)
    assert np.allclose(points[[0, -1]], [(0, 0, 0), (10, 10, 0)])
    assert np.linalg.norm(np.diff(points, axis=0), axis=1).max() < 2
    assert radii[0] == 2
    assert radii[-1] == 1


def test_too_many_sacs_for_one_place_are_refused() -> None:
    tree = grow_tree(Streams(0, 0)("vessels"))
    with pytest.raises(UsageError, match="no room for"):
        grow_lesions(tree, ("Basilar Tip",) * 12, Streams(0, 0)("lesions"), 0.25)
