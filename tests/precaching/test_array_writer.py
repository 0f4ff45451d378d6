"""Arrays in a cache: bytes as they were, points of the patient where they were, and errors that name the volume."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from aneurysm import CacheWriter
from aneurysm.cache.cache import open_cache
from aneurysm.cache.summary import describe_cache
from aneurysm.cache.volume import CachedVolume, close_volumes
from aneurysm.errors import AneurysmError, DamagedCacheError, DataError, SpecMismatchError, UsageError
from aneurysm.labels import LABELS, SITES, UNKNOWN, UNKNOWN_VESSEL
from aneurysm.precaching.verify import verify
from aneurysm.spec import load_spec
from tests.support.cache_paths import volume_path, volume_paths
from tests.support.cache_state import attributes, leftovers, manifest, same_cache, stored_voxels
from tests.support.command import environment
from tests.support.specs import changed, spec_text, write_spec

PRESENT = LABELS[-1]
AS_CACHED = np.array([[0, 0, 1.0, 0], [0, 1.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]])


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def add(cache: Path, voxels, *, spec="arrays-u8", **options) -> dict:
    """Put one volume into a cache; return its metadata."""
    with CacheWriter(cache, spec=spec) as writer:
        assert writer.add("a", voxels, **options) == "cached"
    assert verify(cache, deep=True, workers=0).faults == []
    assert leftovers(cache) == []
    return attributes(cache, "a")


def test_bytes_are_kept_and_shown_as_0_to_1(tmp_path, rng):
    images = {f"case-{n}": rng.integers(0, 256, (n, 28, 30), dtype=np.uint8) for n in (1, 28, 40)}
    with CacheWriter(tmp_path) as writer:
        for uid, image in images.items():
            writer.add(uid, image)
    assert verify(tmp_path, deep=True, workers=0).faults == []
    cache = open_cache(tmp_path)
    assert sorted(cache.uids) == sorted(images)
    for volume in cache:
        image = images[volume.uid]
        assert np.array_equal(stored_voxels(tmp_path, volume.uid), image)
        assert np.array_equal(volume.affine_lps, AS_CACHED)
        shown = volume.read_normalised((0, 0, 0), image.shape)
        assert np.allclose(shown, image / 255, atol=1e-6)
        assert volume.fill == 0


def test_what_is_known_of_labels_and_patients_and_nothing_else_stands_in_the_tables(tmp_path, monkeypatch):
    monkeypatch.setenv("ANEURYSM_PATIENT_KEY", "secret")
    zeros = np.zeros((9, 9, 9), np.uint8)
    with CacheWriter(tmp_path) as writer:
        writer.add("a", zeros, labels={PRESENT: 0}, patient="Mary Smith")
        writer.add("b", zeros, labels={SITES[4]: np.True_, SITES[5]: 0}, modality="CTA", patient="Mary Smith")
        writer.add("c", zeros, lesions=[(SITES[6], (1, 2, 3))])
        writer.add("d", zeros)
    cache = open_cache(tmp_path)
    expected = np.full((4, 14), UNKNOWN)
    expected[0, 13] = 0
    expected[1, [4, 5, 13]] = 1, 0, 1
    expected[2, [6, 13]] = 1
    assert np.array_equal(cache.labels, expected)
    facts = describe_cache(tmp_path)
    assert facts["labels"] == {SITES[4]: 1, SITES[5]: 0, SITES[6]: 1, PRESENT: 2}
    assert cache.modalities == ["unknown", "CTA", "unknown", "unknown"]
    key = hmac.new(b"secret", b"Mary Smith", hashlib.sha256).hexdigest()[:16]
    assert cache.patient_keys == [key, key, "", ""]
    files = [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()]
    assert not any(b"Smith" in content for content in files)
    monkeypatch.setenv("ANEURYSM_PATIENT_KEY", "another")
    with pytest.raises(UsageError, match="was begun with another key of patient_key"):
        CacheWriter(tmp_path)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_voxels_lesions_and_masks_lie_where_the_affine_says(tmp_path, order):
    """A bright voxel, also in the mask, in an array of each order of axes, two of them reversed."""
    axes = np.eye(3)[:, list(order)] * (-1, 1, -1)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes, (7.5, -20.25, 100)
    voxels = np.zeros((11, 12, 13), np.uint8)
    voxels[2, 3, 9] = 200
    spot = (2.0, 3.0, 9.0)
    place = affine @ [*spot, 1]
    meta = add(tmp_path, voxels, affine_lps=affine, lesions=[(SITES[2], spot)], vessels=voxels // 25)
    stored, cached_affine = stored_voxels(tmp_path, "a"), np.array(meta["affine_lps"])
    assert (np.diag(cached_affine[2::-1, :3]) > 0.99).all()  # to Superior, Posterior, Left
    (at,) = np.argwhere(stored == 200)
    assert np.allclose(cached_affine @ [*at, 1], place)
    (lesion,) = meta["lesions"]
    assert np.allclose(lesion["zyx"], at)
    assert np.allclose(lesion["lps_mm"], place[:3])
    volume = open_cache(tmp_path)[0]
    mask = volume.read_vessels((0, 0, 0), volume.shape)
    assert np.array_equal(np.argwhere(mask), [at])
    assert mask.max() == 8


def test_another_spacing_is_resampled_and_nothing_moves(tmp_path):
    """A ramp in mm along each axis, 2.5 x 1 x 0.5 mm, on the grid of 1 mm."""
    spacing = (2.5, 1.0, 0.5)
    axes = [np.arange(n) * s for n, s in zip((12, 30, 60), spacing)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    spot = (6.0, 10.0, 40.0)
    meta = add(
        tmp_path, 10 + 3 * z + 2 * y + x, spacing_mm=spacing, lesions=[(SITES[0], spot)],
        vessels=(y > 15).astype(np.uint8), spec="rsna-1mm", modality="CT",
    )  # fmt: skip
    assert np.allclose(meta["lesions"][0]["lps_mm"], (20, 10, 15))
    volume = open_cache(tmp_path)[0]
    assert volume.shape == (30, 30, 30)
    index = np.stack(np.meshgrid(*[np.arange(3, 26)] * 3, indexing="ij"), -1)
    x, y, z = np.moveaxis(index @ volume.affine_lps[:3, :3].T + volume.affine_lps[:3, 3], -1, 0)
    found = volume.read_physical((3, 3, 3), (23, 23, 23))
    assert np.abs(found - (10 + 3 * z + 2 * y + x)).max() <= 0.51
    # A mask of 0 and 1 does not say which vessel it is.
    assert np.array_equal(volume.read_vessels((3, 3, 3), (23, 23, 23)), np.where(y > 15, UNKNOWN_VESSEL, 0))


def test_ct_is_in_hu_and_the_scale_of_mr_drops_out(tmp_path, rng):
    hu = rng.integers(-1500, 2500, (20, 20, 20))
    add(tmp_path / "ct", hu, spec="rsna-1mm", modality="CTA")
    assert np.array_equal(stored_voxels(tmp_path / "ct", "a"), np.clip(hu, -1000, 2000))
    head = rng.gamma(2.0, 100.0, (20, 20, 20))
    shown = []
    for name, gain in (("mr1", 1.0), ("mr7", 7.0)):
        add(tmp_path / name, gain * head, spec="rsna-1mm", modality="MRA")
        shown.append(open_cache(tmp_path / name)[0].read_normalised((0, 0, 0), (20, 20, 20)))
    assert np.allclose(*shown, atol=1e-3)
    assert shown[0].std() > 0.1


def test_a_region_leaves_out_what_is_below_it_and_says_so(tmp_path):
    spec = write_spec(tmp_path / "top.toml", (10.0, 20.0, 20.0))
    lesions = [(SITES[0], (25.0, 10.0, 10.0)), (SITES[1], (3.0, 10.0, 10.0))]
    meta = add(tmp_path / "cache", np.zeros((30, 20, 20)), spec=spec, modality="CT", lesions=lesions)
    assert [d["code"] for d in meta["decisions"]] == ["cropped"]
    assert [(v["location"], v["zyx"]) for v in meta["lesions"]] == [(SITES[0], [5.0, 10.0, 10.0])]
    assert [(v["location"], v["reason"]) for v in meta["unplaced_lesions"]] == [(SITES[1], "outside_volume")]


def test_floats_and_a_window_of_ones_own(tmp_path, rng):
    text = changed(changed(spec_text("arrays-u8"), "name", '"mine"'), "window", "[-1.0, 1.0]")
    text = changed(changed(text, "dtype", '"int16"'), "spacing_mm", "[0.3, 0.3, 0.3]").replace(
        "# Steps of 1: bytes are stored as they are.\nlevels = 256", "levels = 2001"
    )
    (tmp_path / "mine.toml").write_text(text)
    values = rng.uniform(-1.5, 1.5, (10, 10, 10))
    meta = add(tmp_path / "cache", values, spec=tmp_path / "mine.toml")
    shown = open_cache(tmp_path / "cache")[0].read_normalised((0, 0, 0), (10, 10, 10))
    assert np.allclose(shown, (np.clip(values, -1, 1) + 1) / 2, atol=3e-4)
    assert meta["source"]["spacing_mm"] == [0.3, 0.3, 0.3]


def test_the_window_is_part_of_the_digest_and_older_specs_keep_theirs():
    assert load_spec("rsna-1mm").digest == "bc29c31f3f6626eb"
    assert load_spec("rsna-head-0.5mm").digest == "260931c4a05f3432"
    spec = load_spec("arrays-u8")
    other = spec.intensity.model_copy(update={"array": spec.intensity.array.model_copy(update={"window": (0, 1)})})
    assert spec.model_copy(update={"intensity": other}).digest != spec.digest


GOOD = np.zeros((8, 8, 8), np.uint8)
NAN = np.where(np.arange(512).reshape(8, 8, 8) == 9, np.nan, 0.0)
SKEWED = np.array([[1.0, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    "voxels, options, kind, words",
    [
        pytest.param(GOOD[0], {}, DataError, r"volume a has the shape \(8, 8\), expected three axes", id="2D"),
        pytest.param(GOOD[None], {}, DataError, "expected three axes: one volume, of one channel", id="channel"),
        pytest.param(GOOD[:0], {}, DataError, r"\(0, 8, 8\)", id="empty"),
        pytest.param(NAN, {}, DataError, r"volume a: 1 voxels are NaN, .* the first at \(0, 1, 1\)", id="NaN"),
        pytest.param(GOOD + 1e39, {}, DataError, "512 voxels are NaN, infinite or beyond 32 bits", id="1e39"),
        pytest.param(np.full((8, 8, 8), -np.inf), {}, DataError, "512 voxels are NaN, inf", id="infinite"),
        pytest.param(GOOD.astype(str), {}, DataError, "is of <U3, expected integers or floats", id="text"),
        pytest.param(
            GOOD, {"labels": {"Aneurism Present": 1}}, UsageError, "no label 'Aneurism Present'. Did you mean 'Aneu",
            id="label",
        ),
        pytest.param(GOOD, {"labels": {PRESENT: 2}}, DataError, "Aneurysm Present is 2, expected 0 or 1", id="value"),
        pytest.param(GOOD, {"labels": {PRESENT: np.nan}}, DataError, "Leave it out if it is not known", id="no value"),
        pytest.param(GOOD, {"labels": {PRESENT: np.array([1])}}, DataError, "expected 0 or 1", id="array of one"),
        pytest.param(
            GOOD, {"labels": {PRESENT: 0, SITES[3]: 1}}, DataError, f"{SITES[3]} is 1, but Aneurysm Present is 0",
            id="contradiction",
        ),
        pytest.param(
            GOOD, {"labels": {SITES[3]: 0}, "lesions": [(SITES[3], (1, 1, 1))]}, DataError, "whose label is 0",
            id="lesion that is not",
        ),
        pytest.param(GOOD, {"lesions": [("Basilar tip", (1, 1, 1))]}, UsageError, "mean 'Basilar Tip'", id="site"),
        pytest.param(GOOD, {"lesions": [(SITES[3], (1, 1, 8))]}, DataError, "outside an array of", id="lesion outside"),
        pytest.param(GOOD, {"lesions": [(SITES[3], (1, 1, np.nan))]}, DataError, "outside an array", id="lesion NaN"),
        pytest.param(GOOD, {"modality": "MRI T1"}, UsageError, "no modality 'MRI T1'. Did you mean 'MRI T", id="kind"),
        pytest.param(GOOD, {"modality": "MR"}, DataError, "volume a: no_signal: ", id="MR without an image"),
        pytest.param(GOOD, {"spacing_mm": (1, 0, 1)}, DataError, "three numbers above 0", id="spacing"),
        pytest.param(GOOD, {"spacing_mm": (1, np.inf, 1)}, DataError, "three numbers above 0", id="spacing infinite"),
        pytest.param(GOOD, {"spacing_mm": (1, np.nan, 1)}, DataError, "three numbers above 0", id="spacing NaN"),
        pytest.param(GOOD, {"affine_lps": np.eye(4) * np.nan}, DataError, "volume a: the affine", id="affine NaN"),
        pytest.param(GOOD, {"affine_lps": np.diag([np.inf, 1, 1, 1])}, DataError, "volume a: the affine",
                     id="affine infinite"),
        pytest.param(GOOD, {"vessels": GOOD * np.nan}, DataError, "mask is of float", id="mask NaN"),
        pytest.param(GOOD, {"affine_lps": np.eye(3)}, DataError, "affine of 4 x 4", id="affine"),
        pytest.param(GOOD, {"affine_lps": np.eye(4), "spacing_mm": (1, 1, 1)}, DataError, "either", id="both"),
        pytest.param(GOOD, {"affine_lps": SKEWED}, DataError, "volume a: the affine is sheared", id="sheared"),
        pytest.param(GOOD, {"affine_lps": np.zeros((4, 4))}, DataError, "does not map voxels to mill", id="singular"),
        pytest.param(GOOD, {"spacing_mm": (999, 999, 999)}, DataError, "volume a: too_large", id="too large"),
        pytest.param(GOOD, {"vessels": GOOD[1:]}, DataError, r"mask has the shape \(7, 8, 8\)", id="mask's shape"),
        pytest.param(GOOD, {"vessels": GOOD * 0.5}, DataError, "mask is of float", id="mask of floats"),
        pytest.param(GOOD, {"vessels": GOOD + 15}, DataError, "from 15 to 15, expected integers", id="mask"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_and_leaves_nothing(tmp_path, voxels, options, kind, words):
    with CacheWriter(tmp_path) as writer:
        with pytest.raises(AneurysmError, match=words) as told:
            writer.add("a", voxels, **options)
        assert told.type is kind
        # It can be mended, and given again.
        assert writer.add("a", GOOD) == "cached"
    assert list(manifest(tmp_path)) == ["a"]
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("uid", ["", "../x", "a/b", ".hidden", "a b", "ä", "x" * 129, "a."])
def test_a_name_that_is_no_files_name_is_refused(tmp_path, uid):
    with CacheWriter(tmp_path / "cache") as writer, pytest.raises(UsageError, match="can name a volume"):
        writer.add(uid, GOOD)
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]


def test_a_name_given_twice_and_a_cache_of_another_spec_are_refused(tmp_path):
    with CacheWriter(tmp_path) as writer:
        writer.add("a", GOOD)
        with pytest.raises(UsageError, match="volume a is given twice"):
            writer.add("a", GOOD)
    with pytest.raises(SpecMismatchError, match="made with spec 'arrays-u8'"):
        CacheWriter(tmp_path, spec="rsna-1mm")
    with (
        CacheWriter(tmp_path / "other", spec="rsna-1mm") as writer,
        pytest.raises(UsageError, match=r"'rsna-1mm' does not say what the values of an array without a modality mean"),
    ):
        writer.add("a", GOOD)


def test_what_is_there_is_skipped_unless_it_is_to_be_built_again(tmp_path):
    add(tmp_path, GOOD)
    with CacheWriter(tmp_path) as writer:
        assert writer.add("a", GOOD + 1) == "skipped"
        assert writer.add("b", GOOD) == "cached"
    assert stored_voxels(tmp_path, "a").max() == 0
    with CacheWriter(tmp_path, overwrite=True) as writer:
        assert writer.add("a", GOOD + 1) == "cached"
    assert stored_voxels(tmp_path, "a").min() == 1
    assert sorted(manifest(tmp_path)) == ["a", "b"]
    assert verify(tmp_path, deep=True, workers=0).faults == []


def test_an_error_of_the_caller_leaves_a_cache_of_what_was_added(tmp_path):
    def fail_amid() -> None:
        with CacheWriter(tmp_path) as writer:
            writer.add("a", GOOD)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_amid()
    assert list(manifest(tmp_path)) == ["a"]
    assert verify(tmp_path, workers=0).faults == []


PROGRAM = """
import sys
import numpy as np
from aneurysm import CacheWriter
with CacheWriter(sys.argv[1]) as writer:
    for i in range(40):
        writer.add(f"a{i}", np.full((30, 30, 30), i, np.uint8), labels={"Aneurysm Present": i % 2}, patient=f"p{i}")
"""


@pytest.mark.timeout(120)
def test_killed_and_run_again_it_is_as_if_nothing_had_been(tmp_path):
    command, whole, cut = [sys.executable, "-c", PROGRAM], tmp_path / "whole", tmp_path / "cut"
    subprocess.run([*command, whole], check=True, env=environment(), timeout=100)
    process = subprocess.Popen([*command, cut], env=environment())
    while len(volume_paths(cut)) < 5:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 5 <= len(volume_paths(cut)) < 40
    subprocess.run([*command, cut], check=True, env=environment(), timeout=100)
    assert same_cache(cut, whole) == []
    assert leftovers(cut) == []


def test_importing_the_package_loads_nothing_for_it():
    code = "import sys, aneurysm; print([m for m in ('numpy', 'zarr', 'torch', 'pydicom') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment())
    assert json.loads(ran.stdout.replace("'", '"')) == []


# what is known of an array that is there --------------------------------------------------------------------


def _mask(value=0):
    mask = np.zeros(GOOD.shape, np.uint8)
    mask[1:3, 1:3, 1:3] = value
    return mask


BEFORE = {"labels": {PRESENT: 0}, "patient": "a", "modality": "CTA"}
AFTER = {
    "labels": {"labels": {SITES[3]: 1}, "patient": "a", "modality": "CTA"},
    "a lesion": {**BEFORE, "labels": {}, "lesions": [(SITES[3], (1, 2, 3))]},
    "a mask": {**BEFORE, "vessels": _mask(5)},
    "another patient": {**BEFORE, "patient": "b"},
    "another modality of the same kind": {**BEFORE, "modality": "CT"},
    "nothing known": {"modality": "CTA"},
}


@pytest.mark.parametrize("what", AFTER)
def test_the_same_voxels_with_other_annotations_are_updated(tmp_path, monkeypatch, what):
    monkeypatch.setenv("ANEURYSM_PATIENT_KEY", "the same in both caches")
    for cache, known in (("there", BEFORE), ("fresh", AFTER[what])):
        with CacheWriter(tmp_path / cache) as writer:
            assert writer.add("a", GOOD, **known) == "cached"
    before = (volume_path(tmp_path / "there", "a") / "0/c/0/0/0").stat()
    with CacheWriter(tmp_path / "there") as writer:
        assert writer.add("a", GOOD, **AFTER[what]) == "updated"
    after = (volume_path(tmp_path / "there", "a") / "0/c/0/0/0").stat()
    assert (after.st_ino, after.st_ctime_ns) == (before.st_ino, before.st_ctime_ns)
    assert same_cache(tmp_path / "there", tmp_path / "fresh") == []
    assert verify(tmp_path / "there", deep=True, workers=0).faults == []
    with CacheWriter(tmp_path / "there") as writer:
        assert writer.add("a", GOOD, **AFTER[what]) == "skipped"


def test_a_mask_of_an_array_is_replaced_and_removed(tmp_path):
    for mask, status in ((_mask(5), "cached"), (_mask(6), "updated"), (_mask(6), "skipped"), (None, "updated")):
        with CacheWriter(tmp_path) as writer:
            assert writer.add("a", GOOD, modality="CTA", vessels=mask) == status
        volume = CachedVolume(tmp_path, "a")
        close_volumes()
        assert volume.has_vessels == (mask is not None)
        if mask is not None:
            assert np.array_equal(volume.read_vessels((0, 0, 0), volume.shape), mask)
        assert verify(tmp_path, deep=True, workers=0).faults == []


def test_other_voxels_do_not_get_what_is_known_of_these(tmp_path):
    with CacheWriter(tmp_path) as writer:
        writer.add("a", GOOD, **BEFORE)
    before = manifest(tmp_path)["a"]
    with CacheWriter(tmp_path) as writer:
        with pytest.raises(DataError, match="volume a is there with other voxels"):
            writer.add("a", GOOD + 1, **AFTER["labels"])
        assert writer.add("a", GOOD + 1, **BEFORE) == "skipped"
    assert manifest(tmp_path)["a"] == before


@pytest.mark.parametrize("content", ["{", '{"attributes": {"aneurysm": {}}}', None], ids=["cut", "empty", "changed"])
def test_damaged_metadata_are_not_made_to_look_sound(tmp_path, content):
    add(tmp_path, np.zeros((9, 9, 9), np.uint8), labels={PRESENT: 0})
    path = volume_path(tmp_path, "a") / "zarr.json"
    damaged = path.read_text().replace(f'"{PRESENT}": 0', f'"{PRESENT}": 1') if content is None else content
    path.write_text(damaged)
    with CacheWriter(tmp_path) as writer, pytest.raises(DamagedCacheError, match="volume a: its metadata were changed"):
        writer.add("a", np.zeros((9, 9, 9), np.uint8), labels={PRESENT: 0})
    assert path.read_text() == damaged
    with CacheWriter(tmp_path, overwrite=True) as writer:
        assert writer.add("a", np.zeros((9, 9, 9), np.uint8), labels={PRESENT: 0}) == "cached"
    assert verify(tmp_path, workers=0).faults == []
