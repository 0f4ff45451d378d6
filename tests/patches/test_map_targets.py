"""Maps of lesions: volumes, places and classes with known answers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aneurysm.patches.targets import BatchLesions, map_targets

SHAPE = (32, 36, 40)


def _map(*lesions, batch_size=1, shape=SHAPE, spacing_mm=(1.0, 1.0, 1.0), radius_mm=3.0, **options):
    sample, site, zyx = zip(*lesions) if lesions else ((), (), ())
    sample, site = (torch.tensor(values, dtype=torch.int64) for values in (sample, site))
    zyx = torch.tensor(zyx, dtype=torch.float32).view(-1, 3)
    return map_targets(
        BatchLesions(sample, site, zyx, zyx), batch_size, shape, spacing_mm, radius_mm=radius_mm, **options
    )


def test_without_lesions_all_is_zero():
    drawn = _map(batch_size=2, stride=3)
    assert drawn.shape == (2, 14, 11, 12, 14)
    assert not drawn.any()


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (2.0, 0.5, 0.8)])
def test_a_sphere_has_its_volume_in_mm(spacing_mm):
    centres = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) * 4 + 14
    volumes = [float(_map((0, 5, zyx.tolist()), spacing_mm=spacing_mm, radius_mm=5.0)[0, 5].sum()) for zyx in centres]
    found = sum(volumes) / len(volumes) * math.prod(spacing_mm)
    assert found == pytest.approx(4 / 3 * math.pi * 5**3, rel=0.03)


@pytest.mark.parametrize("kind", ["sphere", "gaussian"])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@given(zyx=st.tuples(*[st.floats(-6, n + 6, width=32) for n in SHAPE]))
@settings(max_examples=15, deadline=None)
def test_every_cell_follows_the_distance_of_its_centre(kind, stride, zyx):
    spacing_mm, radius_mm = (1.2, 0.9, 0.7), 3.3
    drawn = _map((1, 8, zyx), batch_size=2, spacing_mm=spacing_mm, radius_mm=radius_mm, kind=kind, stride=stride)
    cells = [torch.arange(-(-n // stride)) * stride + (stride - 1) / 2 for n in SHAPE]
    away = torch.stack(torch.meshgrid(*cells, indexing="ij"), dim=-1) - torch.tensor(zyx)
    mm = (away.double() * torch.tensor(spacing_mm)).norm(dim=-1)
    sigma = radius_mm / math.sqrt(2 * math.log(2))
    if kind == "sphere":
        expected = (mm <= radius_mm).double()
        nearest = away.abs().amax(dim=-1) < stride / 2
        expected[nearest] = 1
        sharp = (mm - radius_mm).abs() < 1e-3
    else:
        expected = torch.exp(-(mm**2) / (2 * sigma**2)) * (mm <= 3 * sigma)
        sharp = (mm - 3 * sigma).abs() < 1e-3
    # Between two cells, or on the very edge, either answer is right.
    sharp |= ((away.abs() - stride / 2).abs() < 1e-3).any(dim=-1)
    assert torch.allclose(drawn[1, 8].double()[~sharp], expected[~sharp], atol=1e-5)
    assert torch.equal(drawn[1, 13], drawn[1, 8])
    assert not drawn[0].any()
    assert not drawn[1, [k for k in range(13) if k != 8]].any()


def test_a_blob_is_one_at_the_centre_and_one_half_at_the_radius():
    drawn = _map((0, 0, (16.0, 18.0, 20.0)), radius_mm=4.0, kind="gaussian")[0, 0]
    assert drawn[16, 18, 20] == 1
    assert drawn[16, 18, 24] == pytest.approx(0.5, abs=1e-6)
    assert drawn[12, 18, 20] == pytest.approx(0.5, abs=1e-6)


def test_where_lesions_meet_the_larger_value_counts():
    near, far = (0, 2, (16.0, 18.0, 20.0)), (0, 6, (16.0, 18.0, 25.0))
    both = _map(near, far, kind="gaussian")
    assert torch.equal(both[0, 2], _map(near, kind="gaussian")[0, 2])
    assert torch.equal(both[0, 6], _map(far, kind="gaussian")[0, 6])
    assert torch.equal(both[0, 13], torch.maximum(both[0, 2], both[0, 6]))
    same_site = _map((0, 2, near[2]), (0, 2, far[2]), kind="gaussian")
    assert torch.equal(same_site[0, 2], both[0, 13])


def test_a_sphere_smaller_than_a_cell_still_marks_one():
    drawn = _map((0, 1, (10.2, 11.9, 13.0)), radius_mm=1.0, stride=8)
    assert torch.nonzero(drawn[0, 1]).tolist() == [[1, 1, 1]]
