"""Where the head and its vessels are found, on volumes whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aneurysm.spec import load_spec, shipped_specs
from aneurysm.volume.blocks import PackedSurvey, Survey, mask_blocks
from aneurysm.volume.head_and_vessels import survey
from aneurysm.volume.intensity import StoredIntensity, ct_intensity

HU = StoredIntensity("HU", 1.0, 0.0, (-1000, 2000), (-100, 900), {}, -1000, "int16")
MR = StoredIntensity("arbitrary", 0.5, 10.0, (0, 1000), (50, 1000), {}, -20, "int16")


def head(shape=(120, 128, 136), radius=54.0, air=-1000.0, brain=35.0) -> np.ndarray:
    z, y, x = np.ogrid[tuple(slice(n) for n in shape)]
    r2 = sum((g - n / 2) ** 2 for g, n in zip((z, y, x), shape))
    values = np.where(r2 < radius**2, float(brain), float(air))
    values += np.random.default_rng(0).normal(0, 4, shape)
    return values


def stored(physical: np.ndarray, intensity: StoredIntensity = HU) -> np.ndarray:
    return intensity.store(physical.astype(np.float32))


def at(block, edge=8):
    return tuple(slice(k * edge, (k + 1) * edge) for k in block)


@pytest.mark.parametrize("name", shipped_specs())
def test_every_block_of_the_head_and_none_of_the_air_counts(name):
    """Whatever the spec clips: some store air as -200 HU."""
    values, spec = head(), load_spec(name)
    intensity = ct_intensity(spec.intensity.CT, spec.storage)
    blocks = survey(stored(values, intensity), intensity, (1, 1, 1))
    assert blocks.edge == (8, 8, 8)
    assert blocks.head.shape == (15, 16, 17)
    share = np.array(
        [[[(values[at((i, j, k))] > -500).mean() for k in range(17)] for j in range(16)] for i in range(15)]
    )
    assert blocks.head[share > 0.05].all()
    assert not blocks.head[share == 0].any()


def test_the_table_is_not_the_head():
    values = head((120, 176, 136))
    values[:, 144:146, 4:132] = 100  # a plate close below the head
    blocks = survey(stored(values), HU, (1, 1, 1))
    touching = blocks.head[:, 18]
    assert touching.sum() < 0.2 * touching.size
    assert blocks.head[7, 4:17, 8].all()


def test_a_dark_brain_within_a_bright_scalp_is_head():
    values = head(air=5, brain=800)
    values[40:, 44:84, 48:88] = 10  # open towards the crown
    blocks = survey(stored(values, MR), MR, (1, 1, 1))
    assert blocks.head[6:12, 6:10, 7:11].all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_tube_is_a_vessel_and_a_plate_is_none(axis):
    values = head()
    centre = [60, 64, 68]
    tube = [slice(c - 16 - 2, c - 16 + 2) for c in centre]
    tube[axis] = slice(centre[axis] - 20, centre[axis] + 20)
    plate = [slice(c - 8, c + 24) for c in centre]
    plate[axis] = slice(centre[axis] + 20, centre[axis] + 23)
    values[tuple(plate)] = 300
    values[tuple(tube)] = 300
    blocks = survey(stored(values), HU, (1, 1, 1)).blocks("CTA")
    along = [(c - 16) // 8 for c in centre]
    for k in range(centre[axis] - 16, centre[axis] + 16, 8):
        along[axis] = k // 8
        assert blocks.vessels[tuple(along)]
    across = [c // 8 + 1 for c in centre]
    across[axis] = (centre[axis] + 21) // 8
    assert not blocks.vessels[tuple(across)]
    assert not (blocks.vessels & ~blocks.head).any()
    assert blocks.vessels.sum() < 0.2 * blocks.head.sum()


def test_bone_and_its_rim_are_no_vessels():
    values = head()
    values[56:60, 30:100, 60:64] = 1500
    values[56:60, 30:100, 59] = 400  # half bone, half brain: a vessel's HU
    values[56:60, 60:64, 84:88] = 300  # a vessel
    blocks = survey(stored(values), HU, (1, 1, 1)).blocks("CTA")
    assert blocks.vessels[7, 7, 10]
    assert not blocks.vessels[7, 5:11, 7:8].any()


def test_flow_voids_of_t2_are_dark():
    values = head(air=5, brain=500)
    values[50:70, 60:64, 60:64] = 20
    values[50:70, 60:64, 84:88] = 900  # fluid
    found = survey(stored(values, MR), MR, (1, 1, 1))
    dark, bright = found.blocks("MRI T2"), found.blocks("MRA")
    assert dark.vessels[7, 7, 7]
    assert not dark.vessels[7, 7, 10]
    assert bright.vessels[7, 7, 10]
    assert not bright.vessels[7, 7, 7]


def test_a_mask_counts_where_there_is_one():
    values, mask = head(), np.zeros((120, 128, 136), np.uint8)
    mask[8, 16, 24] = 5
    found = survey(stored(values), HU, (1, 1, 1))
    blocks = found.blocks("CTA", mask_blocks(mask, found.edge))
    assert blocks.from_mask
    assert np.argwhere(blocks.vessels).tolist() == [[1, 2, 3]]
    assert blocks.head[1, 2, 3]


def test_blocks_are_8_mm_on_a_finer_grid():
    fine = np.kron(head((40, 48, 48), 18), np.ones((2, 2, 2)))
    blocks = survey(stored(fine), HU, (0.5, 0.5, 0.5))
    assert blocks.edge == (16, 16, 16)
    assert blocks.head.shape == (5, 6, 6)


@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    spacing=st.tuples(*[st.sampled_from([0.4, 0.5, 0.7, 1.0, 3.0, 5.0, 9.0])] * 3),
    masked=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_shape_and_spacing_is_covered(shape, spacing, masked):
    rng = np.random.default_rng(1)
    voxels = rng.integers(-1000, 1500, shape).astype(np.int16)
    mask = (rng.random(shape) < 0.01).astype(np.uint8) if masked else None
    found = survey(voxels, HU, spacing)
    blocks = found.blocks("CTA", None if mask is None else mask_blocks(mask, found.edge))
    assert blocks.head.shape == tuple(-(-n // e) for n, e in zip(shape, blocks.edge))
    assert blocks.from_mask == masked
    if mask is not None:
        for place in np.argwhere(mask):
            assert blocks.vessels[tuple(place // blocks.edge)]
    again = Survey.unpack(PackedSurvey.model_validate_json(found.pack().model_dump_json(), strict=True))
    assert (again.edge, again.dark) == (found.edge, None)
    assert np.array_equal(again.head, found.head)
    assert np.array_equal(again.bright, found.bright)


def test_dark_vessels_come_back_from_the_metadata():
    found = survey(stored(head(air=5, brain=500), MR), MR, (1, 1, 1))
    again = Survey.unpack(PackedSurvey.model_validate_json(found.pack().model_dump_json(), strict=True))
    assert np.array_equal(again.dark, found.dark)
    assert not np.array_equal(again.dark, again.bright)


def test_damaged_metadata_is_refused():
    packed = survey(stored(head()), HU, (1, 1, 1)).pack()
    for change in ({"shape": (1, 2, 3)}, {"head": "AAAA"}, {"bright": "no base64!"}):
        with pytest.raises(ValueError):
            Survey.unpack(packed.model_copy(update=change))
    with pytest.raises(ValueError, match="edge"):
        PackedSurvey.model_validate({**packed.model_dump(), "edge": (8,)})
