"""Whole batches: what is flipped with its labels, what stays, and that each sample follows from its seed alone."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from aneurysm.errors import UsageError
from aneurysm.labels import LABELS, LEFT_RIGHT_PAIRS, SITES, VESSEL_VALUES
from aneurysm.patches.augment import augment
from aneurysm.patches.augment_config import Affine, AugmentConfig, Flip
from aneurysm.patches.augment_draws import draw_augmentation
from aneurysm.patches.spatial import mirrored_labels, mirrored_vessels
from aneurysm.patches.targets import map_targets
from tests.support.batches import make_batch, one_of

OFF = AugmentConfig.off()
SHAPE = (16, 20, 24)
LEFT_MCA, RIGHT_MCA, ACOM = 4, 5, 6
PRESENT = 13
EVERYTHING = AugmentConfig.model_validate(
    {
        "flip": {"front_back": 0.5, "up_down": 0.5},
        "affine": {"p": 0.7},
        "elastic": {"p": 0.5, "spacing_mm": 10, "max_mm": 1},
        **{name: {"p": 0.5} for name in ("window", "gamma", "noise", "blur", "low_resolution", "inversion")},
    }
)


def _only(**sections) -> AugmentConfig:
    return OFF.model_copy(update=sections)


def _integers(n=1, dtype=torch.int16, shape=SHAPE):
    high = 255 if dtype == torch.uint8 else 1000
    return torch.randint(0, high, (n, 1, *shape), dtype=dtype, generator=torch.Generator().manual_seed(3))


def _marked(n=1):
    """A marked voxel in the left half (towards larger x), the value of the left MCA in the mask, and a lesion there."""
    image, vessels = _integers(n) // 10, torch.zeros(n, 1, *SHAPE, dtype=torch.uint8)
    image[:, 0, 7, 6, 19], vessels[:, 0, 7, 6, 19] = 900, VESSEL_VALUES[LEFT_MCA]
    unknown = torch.zeros(n, len(LABELS), dtype=torch.bool)
    unknown[:, [0, 11]] = True
    lesions = [(row, LEFT_MCA, (7.0, 6.0, 19.0)) for row in range(n)]
    return make_batch(image, vessels=vessels, unknown=unknown, lesions=lesions)


def _tensors(of) -> dict[str, Tensor]:
    """The tensors of a `Batch` or `ModelInput`, and of its lesions."""
    values = vars(of) | {f"lesions.{name}": value for name, value in vars(of.lesions).items()}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _set(row: Tensor) -> set[int]:
    return set(torch.nonzero(row).ravel().tolist())


def _assert_marked(out, zyx, site):
    assert torch.nonzero(out.image[0, 0] > 0.8).tolist() == [zyx]
    assert torch.nonzero(out.vessels[0, 0]).tolist() == [zyx]
    assert int(out.vessels[0, 0][tuple(zyx)]) == VESSEL_VALUES[site]
    assert out.lesions.zyx.tolist() == [zyx]
    assert out.lesions.site.tolist() == [site]
    assert _set(out.targets[0]) == {site, PRESENT}


def test_left_right_flip_swaps_sides_in_labels_mask_and_lesions():
    out = augment(_marked(), _only(flip=Flip(left_right=1)))
    _assert_marked(out, [7, 6, 4], RIGHT_MCA)
    assert _set(out.unknown[0]) == _set(out.ignore[0]) == {1, 11}


@pytest.mark.parametrize(
    "flip, zyx",
    [(Flip(left_right=0, front_back=1), [7, 13, 19]), (Flip(left_right=0, up_down=1), [8, 6, 19])],
    ids=["front-back", "up-down"],
)
def test_other_flips_leave_the_sides(flip, zyx):
    out = augment(_marked(), _only(flip=flip))
    _assert_marked(out, zyx, LEFT_MCA)
    assert _set(out.unknown[0]) == _set(out.ignore[0]) == {0, 11}


def test_half_turns_leave_the_sides_too():
    config = _only(affine=Affine(p=1, rotation_deg=(180, 180, 180), scale=(1, 1), anisotropy=0, shear=0))
    for seed in range(8):
        out = augment(replace(_marked(), seeds=torch.tensor([seed])), config)
        assert out.lesions.site.tolist() == [LEFT_MCA]
        assert _set(out.unknown[0]) == {0, 11}
        assert set(out.vessels.unique().tolist()) <= {0, VESSEL_VALUES[LEFT_MCA]}


def test_every_pair_is_swapped_and_the_middle_stays():
    labels = mirrored_labels(torch.device("cpu")).tolist()
    assert [labels[labels[k]] for k in range(14)] == list(range(14))
    assert {(k, other) for k, other in enumerate(labels) if k < other} == set(LEFT_RIGHT_PAIRS)
    other_side = {"Left": "Right", "Right": "Left"}
    for k, other in enumerate(labels):
        assert LABELS[other].split() == [other_side.get(word, word) for word in LABELS[k].split()]
    values = torch.tensor([0, *VESSEL_VALUES, 200], dtype=torch.uint8)
    swapped = [0, *[VESSEL_VALUES[labels[site]] for site in range(len(SITES))], 200]
    assert mirrored_vessels(values).tolist() == swapped


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint8])
@pytest.mark.parametrize("is_ct", [True, False])
def test_off_is_the_batch_normalised(dtype, is_ct):
    batch = make_batch(
        _integers(2, dtype),
        scale=0.37,
        offset=-91.3,
        window=(-80.0, 211.7),
        is_ct=[is_ct] * 2,
        lesions=[(1, 3, (8.1, 9.2, 10.3))],
    )
    out = augment(batch, OFF)
    assert torch.equal(out.image, batch.normalised())
    assert torch.equal(out.lesions.zyx, batch.lesions.zyx)
    assert torch.equal(out.targets, batch.targets)
    assert torch.equal(out.ignore, batch.ignore)
    assert out.vessels is None
    assert (out.series_uid, len(out)) == (batch.series_uid, 2)


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint8])
def test_stored_integers_stay_as_they_are(dtype):
    batch = replace(_marked(3), image=_integers(3, dtype))
    before = {name: value.clone() for name, value in _tensors(batch).items()}
    assert {"image", "lesions.zyx"} < set(before)
    out = augment(batch, EVERYTHING)
    for name, value in _tensors(batch).items():
        assert torch.equal(value, before[name])
    assert out.image.dtype == torch.float32
    assert not torch.equal(out.image, batch.normalised())


def test_a_sample_does_not_depend_on_its_neighbours():
    n = 6
    batch = make_batch(
        _integers(n),
        seeds=[-5, 7, 2**62, 0, 11, 12],
        is_ct=[True, False] * 3,
        vessels=_integers(n, torch.uint8) % 14,
        lesions=[(row, site, (8.0 + row, 9.0, 3.0 * site)) for row in range(n) for site in (2, 4)],
        spacing_mm=(1.2, 0.8, 0.9),
    )
    options = {"out_shape_zyx": (12, 16, 17), "ct_windows_hu": [(0, 80), (100, 700)]}
    together = augment(batch, EVERYTHING, **options)
    draws = [draw_augmentation(seed, EVERYTHING, (4, 4, 4)) for seed in batch.seeds.tolist()]
    assert any(d.controls_mm is not None for d in draws), "nothing was bent"
    assert any(d.slice_mm for d in draws), "nothing was made coarse"
    assert any(d.noise_sigma for d in draws), "nothing got noise"
    for row in range(n):
        alone = augment(one_of(batch, row), EVERYTHING, **options)
        mine = together.lesions.sample == row
        # Matrix products may add up in another order when there are more of them: in elastic bending and blur, which
        # moves a value by some 1e-6.
        torch.testing.assert_close(together.image[row], alone.image[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(together.lesions.zyx[mine], alone.lesions.zyx, atol=1e-5, rtol=0)
        assert torch.equal(together.lesions.site[mine], alone.lesions.site)
        assert torch.equal(together.targets[row], alone.targets[0])
        assert torch.equal(together.ignore[row], alone.ignore[0])
        assert (together.vessels[row] != alone.vessels[0]).float().mean() < 1e-3


def test_without_matrix_products_a_sample_is_the_same_bit_for_bit():
    config = EVERYTHING.model_copy(update={name: getattr(OFF, name) for name in ("elastic", "blur", "low_resolution")})
    batch = make_batch(_integers(5), is_ct=[True, False, True, False, False])
    together = augment(batch, config)
    for row in range(5):
        assert torch.equal(together.image[row], augment(one_of(batch, row), config).image[0])


def test_the_same_seed_does_the_same_again_and_another_does_not():
    batch = make_batch(_integers(1).expand(3, -1, -1, -1, -1), seeds=[1, 1, 2])
    out = augment(batch, AugmentConfig(noise={"p": 1}))
    assert torch.equal(out.image[0], out.image[1])
    assert not torch.equal(out.image[0], out.image[2])


def test_padding_is_air_and_not_grey():
    # CT as the cache stores it in one byte: air is 0, and 0 HU is mid-scale.
    batch = make_batch(
        torch.full((1, 1, *SHAPE), 100, dtype=torch.uint8), scale=10.0, offset=-1000.0, window=(-100.0, 900.0), fill=0.0
    )
    config = _only(affine=Affine(p=1, scale=(0.5, 0.5)))
    image = augment(batch, config, ct_windows_hu=[(-100, 900), (-2000, 0)]).image[0]
    assert image[0, 0, 0, 0] == 0
    assert image[1, 0, 0, 0] == pytest.approx(0.5), "-1000 HU, though stored 0 would be that in any case"
    assert image[0, 8, 10, 12] == pytest.approx(0.1)


def test_int16_padding_is_air_though_stored_zero_is_water():
    batch = make_batch(torch.full((1, 1, *SHAPE), 40, dtype=torch.int16), window=(-100.0, 900.0), fill=-1000.0)
    image = augment(batch, _only(affine=Affine(p=1, scale=(0.5, 0.5)))).image[0, 0]
    assert image[0, 0, 0] == 0
    assert image.max() == pytest.approx(0.14)
    assert image[8, 10, 12] == pytest.approx(0.14)


def test_targets_follow_what_the_cut_leaves_in_view():
    # In the batch's patch all are 3 mm inside; of the smaller one, the second lies on a face and the third outside.
    sites = [LEFT_MCA, ACOM, 11]
    lesions = [(0, site, (8.0, 10.0, x)) for site, x in zip(sites, (12.0, 8.0, 3.0))]
    batch = make_batch(_integers(), lesions=lesions)
    assert _set(batch.targets[0]) == {*sites, PRESENT}
    out = augment(batch, OFF, out_shape_zyx=(16, 20, 10))
    assert out.image.shape == (1, 1, 16, 20, 10)
    assert torch.equal(out.image, batch.normalised()[..., 7:17])
    assert out.lesions.zyx[:, 2].tolist() == [5, 1, -4]
    assert _set(out.targets[0]) == {LEFT_MCA, PRESENT}
    assert _set(out.ignore[0]) == {ACOM}
    assert _set(augment(batch, OFF, out_shape_zyx=(16, 20, 10), margin_mm=1.0).targets[0]) == {LEFT_MCA, ACOM, PRESENT}


def test_a_shape_larger_than_the_patches_is_refused():
    with pytest.raises(UsageError, match=r"\(16, 20, 25\).*\(16, 20, 24\)"):
        augment(_marked(), OFF, out_shape_zyx=(16, 20, 25))


def test_autocast_does_not_round_voxels():
    batch = make_batch(_integers())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = augment(batch, EVERYTHING)
    assert torch.equal(rounded.image, augment(batch, EVERYTHING).image)


def _busy(device: str):
    batch = _marked(4)
    config = EVERYTHING.model_copy(update={"noise": OFF.noise})
    moved = batch.to(device)
    assert moved.seeds.device.type == "cpu"
    return batch, moved, lambda some: augment(some, config, ct_windows_hu=[(0, 80), (100, 700)])


def test_nothing_is_read_back_from_the_device(monkeypatch):
    # Tensors on "meta" have no values: to read one is an error, and so is to mix them with the CPU's.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    batch, on_meta, change = _busy("meta")
    out, expected = change(on_meta), change(batch)
    tensors = _tensors(expected)
    assert {"image", "lesions.zyx"} < set(tensors)
    for name, value in _tensors(out).items():
        assert value.device.type == "meta"
        assert value.shape == tensors[name].shape
    drawn = map_targets(out.lesions, 4, SHAPE, (1.0, 1.0, 1.0), radius_mm=3.0, stride=2)
    assert drawn.device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_does_what_the_cpu_does():
    batch, on_gpu, change = _busy("cuda")
    out, expected = change(on_gpu), change(batch)
    for name, value in _tensors(out).items():
        if name != "vessels":
            torch.testing.assert_close(value.cpu(), _tensors(expected)[name], atol=1e-3, rtol=0)


@pytest.fixture(params=[torch.float64, torch.bfloat16, torch.float16], ids=str)
def other_default_dtype(request):
    yield request.param
    torch.set_default_dtype(torch.float32)


def test_the_default_dtype_of_torch_has_no_say(other_default_dtype):
    """A model in float64, or one that is loaded in half precision, is no reason for other patches."""
    batch = make_batch(
        _integers(6),
        vessels=_integers(6, torch.uint8) % 14,
        lesions=[(row, LEFT_MCA, (7.0, 6.0, 19.0)) for row in range(6)],
    )

    def made():
        out = augment(batch, EVERYTHING, out_shape_zyx=(12, 16, 20), ct_windows_hu=[(-100, 900), (0, 300)])
        kinds = [
            map_targets(out.lesions, 6, (12, 16, 20), out.spacing_mm, radius_mm=3.0, kind=kind, stride=2)
            for kind in ("sphere", "gaussian")
        ]
        return _tensors(out) | dict(zip(("sphere", "gaussian"), kinds))

    expected = made()
    torch.set_default_dtype(other_default_dtype)
    found = made()
    assert {"image", "vessels", "targets", "lesions.zyx", "sphere"} < set(expected)
    for name in expected:
        assert found[name].dtype == expected[name].dtype, name
        assert torch.equal(found[name], expected[name]), name
