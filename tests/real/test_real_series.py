"""Every real series is cached, where other programs see it, or has a reason a person would agree with.

Compares patient space and values with NIfTI references, published with the series or made by dcm2niix. It
does not judge the exact voxels: the cache is anti-aliased at 1 mm, the references are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest

from aneurysm.precaching.run import precache
from tests.real.references import Agreement, Nifti, Slices, compare, convert, read_nifti, read_slices, same_box
from tests.support.cache_state import attributes, leftovers, manifest, stored_voxels
from tests.support.run_data import real_data_root, unpack_real_series

pytestmark = pytest.mark.skipif(
    real_data_root() is None, reason="no real series: set ANEURYSM_REAL_DATA to a folder that holds them"
)

MINI = "dicom2nifti-mini"
IDENTITY = "1 mm already: the same voxels even for noise"


@dataclass(frozen=True)
class Case:
    """One series: where it lies, and what a person who looks at it would expect of the cache."""

    folder: str
    reasons: tuple[str, ...] = ()  # allowed reasons of a refusal
    cacheable: bool = True
    any_reference: bool = False  # several volumes: agreeing with one of them is right
    values: bool = True  # False: noise on another grid than 1 mm, only geometry can be compared
    box: bool = True  # False: tilted, its field of view is not a box
    truth: str = ""  # a reference at this place instead of reference/ and dcm2niix


CASES = (
    Case("ct-philips-tilt", box=False),
    Case("mr-t1post-siemens-oblique"),
    Case("mr-t1-xa30-jpegll-fragmented"),
    Case("mr-t1-xa30-enhanced"),
    Case("mr-t1-ge-oblique"),
    Case("mr-pd-ge-jitter"),
    Case("mr-t1-siemens-skyra-sag"),
    Case("transfer-syntaxes-mosaic", reasons=("mosaic",), cacheable=False),
    Case("mr-12bit", reasons=("mosaic",), cacheable=False),
    Case("mr-philips-dual-echo", reasons=("several_volumes",), any_reference=True),
    Case("mr-philips-enhanced", reasons=("several_volumes",), any_reference=True),
    Case(f"{MINI}/failing/gantrytilting/001", values=False, box=False),
    Case(f"{MINI}/failing/notavolume/001", reasons=("one_position",), cacheable=False),
    Case(f"{MINI}/failing/slicecount/001", truth="001_ground_truth_reoriented.nii.gz"),
    Case(f"{MINI}/failing/sliceincrement/001", values=False, box=False),
    Case(f"{MINI}/failing/sliceorientation/001", reasons=("no_majority",), cacheable=False),
    Case(f"{MINI}/ge/anatomical/001", truth="001_ground_truth_reoriented.nii.gz"),
    Case(f"{MINI}/ge/anatomical/001_implicit", truth="001_implicit_ground_truth_reoriented.nii.gz"),
    Case(f"{MINI}/ge/anatomical/001_single_slice", reasons=("too_few_slices",), cacheable=False),
    Case(f"{MINI}/generic/anatomical/001", truth="001_ground_truth_reoriented.nii.gz"),
    Case(f"{MINI}/generic/anatomical/001_implicit", truth="001_implicit_ground_truth_reoriented.nii.gz"),
    Case(
        f"{MINI}/generic/anatomical/002_non_isotropic",
        values=False,
        truth="002_non_isotropic_ground_truth.nii.gz",
    ),
    Case(f"{MINI}/generic/compressed/001", truth="001_ground_truth_reoriented.nii.gz"),
    Case(f"{MINI}/generic/compressed_j2k/001", truth="001_ground_truth_reoriented.nii.gz"),
    Case(f"{MINI}/generic/compressed_jpeg/001", truth="001_ground_truth_reoriented.nii.gz"),
    Case(f"{MINI}/generic/compressed_jpegls/001", truth="001_ground_truth_reoriented.nii.gz"),
    Case(f"{MINI}/generic/compressed_rle/001", truth="001_ground_truth_reoriented.nii.gz"),
    Case(f"{MINI}/philips_enhanced/anatomical/001", values=False, truth="001_ground_truth_reoriented.nii.gz"),
    Case(
        f"{MINI}/philips_enhanced/anatomical/001_implicit",
        values=False,
        truth="001_implicit_ground_truth_reoriented.nii.gz",
    ),
)


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All real series, unpacked and writable, below one folder."""
    root = real_data_root()
    assert root is not None
    target = tmp_path_factory.mktemp("real")
    for folder in sorted(p for p in root.iterdir() if p.is_dir()):
        unpack_real_series(folder.name, target / folder.name)
    return target


def test_the_cases_name_every_series_that_is_there(unpacked: Path) -> None:
    folders = {
        p.parent.relative_to(unpacked).as_posix()
        for p in unpacked.rglob("*")
        if p.is_file() and (p.suffix == ".dcm" or p.read_bytes()[128:132] == b"DICM")
    }
    known = {case.folder for case in CASES}
    assert {f for f in folders if not any(f == k or f.startswith(k + "/") for k in known)} == set()


def test_every_real_series_is_cached_rightly_or_refused_with_a_fair_reason(unpacked: Path, tmp_path: Path) -> None:
    lines, faults = [], []
    for number, case in enumerate(CASES):
        line, found = _try_case(case, unpacked, tmp_path / f"case-{number}")
        lines.append(line)
        faults += [f"{case.folder}: {fault}" for fault in found]
    header = f"{'series':58} {'status':9} {'reason':16} {'shape':16} {'r':>7} {'best other':>20} {'slope':>6}"
    print("\n" + "\n".join([f"{header}  reference", *lines]))
    assert not faults, "\n" + "\n".join(faults)


def _try_case(case: Case, unpacked: Path, scratch: Path) -> tuple[str, list[str]]:
    """Precache one folder; return a line of the table, and what is wrong."""
    cache = scratch / "cache"
    precache(unpacked / case.folder, cache, workers=0)
    rows = list(manifest(cache).values())
    faults = [f"left behind: {left}" for left in leftovers(cache)]
    if len(rows) != 1:
        return f"{case.folder:58} {len(rows)} rows", [*faults, f"{len(rows)} rows instead of one: {rows}"]
    row = rows[0]
    name = case.folder.replace(MINI, "mini")
    start = f"{name:58} {row['status']:9} {row['reason']:16} {row['shape']:16}"
    if row["status"] != "cached":
        if row["status"] == "failed" or row["reason"] not in case.reasons or not row["detail"]:
            faults.append(f"{row['status']} as {row['reason']!r} ({row['detail']}), allowed: {case.reasons}")
        return start, faults
    if not case.cacheable:
        return start, [*faults, f"cached, though a person would refuse it as {case.reasons}"]

    facts = attributes(cache, row["series_uid"])
    affine = np.asarray(facts["affine_lps"], float)
    stored = stored_voxels(cache, row["series_uid"])
    faults += _wrong_frame(affine)
    if case.folder.endswith("sliceincrement/001"):
        # Gaps of 5, 5 and 10 mm; half the usual gap beyond either end makes 15.6 to 40.6 mm.
        middle = affine[:3, :3] @ ((np.asarray(stored.shape) - 1) / 2) + affine[:3, 3]
        if stored.shape[0] != 25 or abs(middle[2] - 28.1075) > 0.05:
            faults.append(f"{stored.shape[0]} slices around z = {middle[2]:.3f} mm, expected 25 around 28.107")

    intensity = facts["intensity"]
    physical = stored.astype(np.float64) * intensity["scale"] + intensity["offset"]
    references = _references(case, unpacked, scratch)
    results = []
    for reference in references:
        wrong = same_box(stored.shape, affine, reference) if case.box and isinstance(reference, Nifti) else ""
        if wrong:
            faults.append(f"{reference.name}: {wrong}")
        if case.values:
            results.append((reference.name, compare(physical, affine, tuple(intensity["clip"]), reference)))
    faults += _disagreements(case, results)
    if not results:
        return f"{start} {'-':>7} {'-':>20} {'-':>6}  geometry only ({len(references)})", faults
    if case.any_reference:
        results = [max(results, key=lambda item: item[1].correlation)]
    shown = []
    for reference_name, found in results:
        other = f"{found.best_other:.4f} ({found.best_other_name})"
        shown.append(f"{found.correlation:7.4f} {other:>20} {found.slope:6.3f}  {reference_name}")
    return f"{start} " + ("\n" + " " * (len(start) + 1)).join(shown), faults


def _disagreements(case: Case, results: list[tuple[str, Agreement]]) -> list[str]:
    """What speaks against a cached volume's values."""
    faults = []
    for name, found in results:
        if not found.agrees:
            faults.append(f"{name}: r = {found.correlation:.4f}, {found.best_other:.4f} for {found.best_other_name}")
        elif not 0.95 < found.slope < 1.05:
            faults.append(f"{name}: the cache's physical values are {found.slope:.3f} of the reference's")
    if case.any_reference and len(faults) < len(results):
        return []
    return faults


def _wrong_frame(affine: np.ndarray) -> list[str]:
    """z must run most nearly to Superior, y to Posterior, x to Left, at 1 mm."""
    axes = affine[:3, :3]
    faults = []
    if not np.allclose(np.linalg.norm(axes, axis=0), 1.0, atol=1e-6):
        faults.append(f"spacing is {np.linalg.norm(axes, axis=0)} mm")
    for column, row in enumerate((2, 1, 0)):
        if np.abs(axes[:, column]).argmax() != row or axes[row, column] <= 0:
            faults.append(f"axis {'zyx'[column]} runs along {axes[:, column]}")
    return faults


def _references(case: Case, unpacked: Path, scratch: Path) -> list[Nifti | Slices]:
    """Published references, those that dcm2niix makes of the same files, and the slices themselves."""
    root = real_data_root()
    assert root is not None
    if case.folder.startswith(MINI):
        return [read_nifti((root / case.folder).parent / case.truth)] if case.truth else []
    found: list[Nifti | Slices] = [*convert(unpacked / case.folder, scratch / "reference")]
    if case.any_reference:  # Philips' published ones are in "precise" units, for which the clip means nothing
        return found
    found += [read_nifti(p) for p in sorted((root / case.folder / "reference").glob("*.nii*"))]
    slices = read_slices(unpacked / case.folder)
    if case.folder == "mr-pd-ge-jitter":
        assert slices is not None
        found = [_with_true_step(r, slices) for r in found if isinstance(r, Nifti)]
    return found if slices is None else [*found, slices]


def _with_true_step(reference: Nifti, slices: Slices) -> Nifti:
    """The reference with its slices where the DICOM files say.

    dcm2niix takes the first gap (7.071 mm) for all of them; their mean is 6.996 mm, which adds up to 1.4 mm.
    """
    first, last = slices.origins[0], slices.origins[-1]
    step = (last - first) / (len(slices.origins) - 1)
    affine = reference.affine_lps.copy()
    if affine[:3, 0] @ step < 0:
        step, first = -step, last
    # NIfTI rows run the other way than DICOM's: its origin is the far end of DICOM's first column.
    back = affine[:3, 1] @ slices.column < 0
    affine[:3, 3] = first - back * affine[:3, 1] * (reference.voxels.shape[1] - 1)
    affine[:3, 0] = step
    return Nifti(reference.name + " (true step)", reference.voxels, affine)


def test_the_whole_folder_in_one_run(unpacked: Path, tmp_path: Path) -> None:
    """Series are told apart by UID, not by folder: several folders here hold copies of one series."""
    expected: dict[str, set[str]] = {}
    for case in CASES:
        for path in (unpacked / case.folder).rglob("*"):
            if path.is_file():
                header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
                if "SeriesInstanceUID" in header and "Rows" in header:
                    expected.setdefault(str(header.SeriesInstanceUID), set()).add(case.folder)
    summary = precache(unpacked, tmp_path / "cache", workers=2)
    rows = manifest(tmp_path / "cache")
    assert set(rows) == set(expected)
    by_folder = {case.folder: case for case in CASES}
    for uid, folders in expected.items():
        row, cases = rows[uid], [by_folder[f] for f in folders]
        if len(cases) == 1 and row["status"] != "cached":
            assert row["reason"] in cases[0].reasons, (folders, row)
        if len(cases) > 1:  # copies of the same slices
            assert row["status"] == "cached", (folders, row)
            codes = [d["code"] for d in attributes(tmp_path / "cache", uid)["decisions"]]
            assert "duplicate_slices" in codes, (folders, codes)
    counts = [sum(r["status"] == s for r in rows.values()) for s in ("cached", "rejected", "failed")]
    assert [summary.cached, summary.rejected, summary.failed] == counts
    assert summary.failed == 0
