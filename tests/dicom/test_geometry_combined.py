"""Any combination of plane, direction, turn, tilt, spacing, gaps, order and storage shows the pattern (hypothesis)."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from aneurysm.labels import LABELS
from tests.support.acquisition import Acquisition, acquire, rotation
from tests.support.cached import run
from tests.support.pattern import Pattern, anatomy
from tests.support.pixels import Storage
from tests.support.series import CT, MR, new_uid, write_multiframe, write_series
from tests.support.trees import RsnaTree
from tests.support.truth import assert_frame, assert_shows

AXES = [sign * axis for axis in np.eye(3) for sign in (1.0, -1.0)]
ORIENTATIONS = [(row, column) for row in AXES for column in AXES if abs(row @ column) < 0.5]
UID = new_uid("combined")


@dataclass(frozen=True)
class Case:
    """One drawn acquisition: what lies where (in slice order), and the order in which it is written."""

    stack: Acquisition
    order: tuple[int, ...]
    modality: str
    storage: Storage
    syntax: str
    stripped: bool
    multiframe: bool

    @property
    def pattern(self) -> Pattern:
        base = 300.0 if self.modality == "CT" else 700.0
        return anatomy(self.stack.centre, self.stack.extent_mm, base)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    slices = draw(st.integers(10, 24), label="slices")
    gap = draw(st.sampled_from([0.6, 1.0, 1.25, 2.0, 3.3]), label="gap_mm")
    uneven = draw(st.sampled_from([0.0, 0.0, 0.3]), label="unevenness")
    steps = gap * (1 + uneven * np.random.default_rng(draw(st.integers(0, 99))).uniform(-1, 1, slices - 1))
    missing = draw(st.sampled_from([None, None, slices // 2]), label="missing slice")
    offsets = np.concatenate([[0], np.cumsum(steps)])
    if missing is not None:
        offsets = np.delete(offsets, missing)
    # Tilt and turn stay small enough that the closest axes are not in doubt.
    tilt = draw(st.sampled_from([0.0, 0.0, -16.0, 9.0]), label="tilt_deg")
    turn = draw(st.sampled_from([None, None, 7.0, -14.0]), label="turn_deg")
    axis = draw(st.tuples(*[st.sampled_from([-1.0, 0.3, 1.0])] * 3), label="turn about")
    spacing = draw(st.tuples(*[st.sampled_from([0.5, 0.8, 1.0, 1.5])] * 2), label="spacing_mm")
    # A tilted slice is displaced against its neighbours: in plane there must be enough left to judge.
    shape = tuple(
        round(draw(st.integers(20, 28)) / s) + (round(slices * gap * 0.3 / s) if tilt else 0) for s in spacing
    )
    stack = acquire(
        draw(st.sampled_from(ORIENTATIONS), label="directions"),
        offsets_mm=offsets,
        shape=shape,
        spacing_mm=spacing,
        tilt_deg=tilt,
        turn=None if turn is None else rotation(axis, turn),
        reverse=draw(st.booleans(), label="against the normal"),
        middle=draw(st.sampled_from([(0, 0, 0), (-31.7, 212.9, -755.3)]), label="middle"),
    )
    modality = draw(st.sampled_from(["CT", "MR"]), label="modality")
    storage = draw(
        st.sampled_from(
            [
                CT if modality == "CT" else MR,
                Storage(16, 16, signed=True),
                Storage(16, 13, signed=True, garbage=3),
                Storage(16, 12, 15, signed=False, intercept=-1000.0),
                Storage(16, 12, signed=False, intercept=-1000.0, inverted=True),
            ]
        )
    )
    multiframe = draw(st.sampled_from([False, False, False, True]), label="multi-frame")
    return Case(
        stack,
        tuple(draw(st.permutations(range(len(stack))), label="order")),
        modality,
        storage,
        draw(st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])),
        draw(st.booleans(), label="25 tags") and not multiframe,
        multiframe,
    )


@given(case=cases(), mark=st.tuples(st.integers(0, 9), st.floats(0.05, 0.95), st.floats(0.05, 0.95)))
@settings(
    max_examples=30,
    derandomize=True,
    deadline=None,
    database=None,
    # A failing case is told in full by its labels; shrinking one takes minutes.
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_any_combination_shows_the_pattern_and_places_its_lesion(case, mark):
    folder = Path(tempfile.mkdtemp())
    try:
        assert_pattern_and_lesion(folder, case, mark)
    finally:
        shutil.rmtree(folder)


def assert_pattern_and_lesion(folder: Path, case: Case, mark: tuple[int, float, float]) -> None:
    tree = RsnaTree(folder / "data")
    write = write_multiframe if case.multiframe else write_series
    options = {} if case.multiframe else {"stripped": case.stripped}
    written = write(
        tree.folder(UID), case.stack.take(case.order), case.pattern, uid=UID, modality=case.modality,
        storage=case.storage, syntax=case.syntax, **options,
    )  # fmt: skip
    tree.declare(UID, "CTA" if case.modality == "CT" else "MRA", positive=[LABELS[6]])
    index, y, x = mark[0] % len(case.stack), mark[1] * (case.stack.shape[0] - 1), mark[2] * (case.stack.shape[1] - 1)
    truth = case.stack.take(case.order).lps(index, x, y)
    sop = written.sops[0 if case.multiframe else index]
    tree.localize(UID, sop, x, y, frame=index if case.multiframe else None)
    image = run(tree.write_tables()).image(UID)
    assert_frame(image)
    assert_shows(image, case.stack, case.pattern, at_least=60)
    (lesion,) = image.lesions
    assert np.linalg.norm(np.array(lesion["lps_mm"]) - truth) < 1e-3
    assert np.linalg.norm(image.lps(np.array(lesion["zyx"])) - truth) < 1e-3
