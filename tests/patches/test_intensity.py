"""Windows to the number; noise, blur and thick slices by their statistics; tones by their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aneurysm.errors import UsageError
from aneurysm.patches.intensity import (
    add_noise,
    change_tones,
    gaussian_matrix,
    lower_resolution,
    model_units,
    slices_matrix,
)
from aneurysm.volume.intensity import to_model_units, to_physical
from tests.support.draws import still

CT, MR = torch.tensor([True]), torch.tensor([False])
WINDOW = torch.tensor([[-100.0, 900.0]])
HU = torch.tensor([-1000.0, -100.0, 0.0, 40.0, 80.0, 400.0, 900.0, 2000.0]).view(1, 1, 1, 1, 8)


def _values(image):
    return [round(value, 5) for value in image.ravel().tolist()]


def test_numpy_and_torch_come_to_the_same_bits():
    stored = np.arange(-32768, 32768, 7, dtype=np.int16)
    scale, offset, low, width = 0.37, -91.3, -80.1, 291.7
    physical = to_physical(stored.astype(np.float32), scale, offset)
    of_torch = to_physical(torch.from_numpy(stored).float(), torch.tensor([scale]), torch.tensor([offset]))
    assert physical.dtype == np.float32
    np.testing.assert_array_equal(physical, of_torch.numpy())
    np.testing.assert_allclose(physical, stored * scale + offset, rtol=1e-6, atol=1e-4)
    shown = to_model_units(physical, low, width)
    np.testing.assert_array_equal(shown, to_model_units(of_torch, torch.tensor([low]), torch.tensor([width])).numpy())
    assert (shown.dtype, shown.min(), shown.max()) == (np.float32, 0, 1)
    np.testing.assert_array_equal(physical, of_torch.numpy(), "the physical values were changed")


class TestWindows:
    def test_one_channel_shows_the_cache_s_window(self):
        assert _values(model_units(HU, WINDOW, CT)) == [0, 0, 0.1, 0.14, 0.18, 0.5, 1, 1]

    def test_each_window_of_ct_is_a_channel(self):
        image = model_units(HU, WINDOW, CT, [(0, 80), (-100, 900), (100, 700)])
        assert image.shape == (1, 3, 1, 1, 8)
        assert _values(image[:, 0]) == [0, 0, 0, 0.5, 1, 1, 1, 1]
        assert _values(image[:, 1]) == [0, 0, 0.1, 0.14, 0.18, 0.5, 1, 1]
        assert _values(image[:, 2]) == [0, 0, 0, 0, 0, 0.5, 1, 1]

    def test_mr_shows_the_same_in_every_channel(self):
        both = model_units(
            HU.expand(2, -1, -1, -1, -1), WINDOW.expand(2, -1), torch.tensor([True, False]), [(0, 80), (100, 700)]
        )
        alone = model_units(HU, WINDOW, MR)
        assert torch.equal(both[1], alone[0].expand(2, -1, -1, -1))
        assert torch.equal(both[:1], model_units(HU, WINDOW, CT, [(0, 80), (100, 700)]))

    def test_shift_and_width_move_the_window_by_shares_of_its_width(self):
        # -100 to 900, moved up by 100, then half as wide about its middle: 250 to 750.
        image = model_units(HU, WINDOW, CT, draws=[still(window_shift=0.1, window_width=0.5)])
        assert _values(image) == [0, 0, 0, 0, 0, 0.3, 1, 1]

    def test_an_empty_window_is_refused(self):
        with pytest.raises(UsageError, match="from 80 to 80 HU"):
            model_units(HU, WINDOW, CT, [(0, 80), (80, 80)])


class TestNoise:
    def test_is_gaussian_in_ct_and_rician_in_mr(self):
        air, tissue = torch.zeros(1, 1, 40, 40, 40), torch.full((1, 1, 40, 40, 40), 500.0)
        noisy = still(noise_sigma=0.03, noise_seed=5)
        ct = add_noise(torch.cat([air, tissue]), WINDOW.expand(2, -1), CT.expand(2), [noisy, noisy])
        assert ct.mean(dim=(1, 2, 3, 4)).tolist() == pytest.approx([0, 500], abs=1)
        assert ct.std(dim=(1, 2, 3, 4)).tolist() == pytest.approx([30, 30], rel=0.02)
        mr = add_noise(torch.cat([air, tissue]), WINDOW.expand(2, -1), MR.expand(2), [noisy, noisy])
        assert mr.min() >= 0
        # Rayleigh's mean in air; sqrt(A^2 + sigma^2), nearly, in tissue.
        assert mr.mean(dim=(1, 2, 3, 4)).tolist() == pytest.approx([30 * np.sqrt(np.pi / 2), 500.9], rel=0.01)

    def test_comes_from_the_seed_of_the_sample(self):
        first, second = still(noise_sigma=0.1, noise_seed=1), still(noise_sigma=0.1, noise_seed=2)

        def noise(*draws):
            return add_noise(torch.zeros(len(draws), 1, 4, 4, 4), WINDOW.expand(len(draws), -1), CT, draws)

        image = add_noise(torch.zeros(3, 1, 4, 4, 4), WINDOW.expand(3, -1), CT.expand(3), [first, still(), second])
        assert torch.equal(image[:1], noise(first))
        assert not image[1].any()
        assert torch.equal(image[2:], noise(second))
        assert not torch.equal(image[0], image[2])


class TestResolution:
    def test_a_point_blurs_to_a_gaussian_of_so_many_mm(self):
        image = torch.zeros(1, 1, 31, 31, 31)
        image[0, 0, 15, 15, 15] = 1
        spacing_mm = (1.0, 0.5, 2.0)
        blurred = lower_resolution(image, [still(blur_sigma_mm=1.3)], spacing_mm)[0, 0]
        assert blurred.sum() == pytest.approx(1, abs=1e-4)
        for axis, mm in enumerate(spacing_mm):
            along = blurred.sum(dim=[k for k in range(3) if k != axis])
            at = (torch.arange(31) - 15) * mm
            assert (along * at).sum() == pytest.approx(0, abs=1e-4)
            assert (along * at**2).sum().sqrt() == pytest.approx(1.3, rel=0.02)

    @pytest.mark.parametrize("sigma", [0.0, 0.01, 0.2, 3.0])
    def test_blur_leaves_a_constant_alone_at_the_faces_too(self, sigma):
        assert gaussian_matrix(12, sigma).sum(axis=1) == pytest.approx(np.ones(12))

    @pytest.mark.parametrize("thickness, phase", [(1.5, 0.0), (2.0, 0.5), (3.7, 0.99), (5.0, 0.25), (40.0, 0.5)])
    def test_thick_slices_leave_a_constant_alone(self, thickness, phase):
        assert slices_matrix(16, thickness, phase).sum(axis=1) == pytest.approx(np.ones(16))

    def test_thick_slices_average_and_interpolate(self):
        step = np.array([0.0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1])
        # Slices 0-3, 4-7, 8-11 with centres at 1.5, 5.5, 9.5.
        expected = [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1, 1, 1, 1, 1]
        assert slices_matrix(12, 4.0, 0.0) @ step == pytest.approx(expected)
        # Half a slice earlier: -2 to 1, 2-5, 6-9, 10-11 with centres at -0.5, 3.5, 7.5, 11.5.
        expected = [0.0625, 0.1875, 0.3125, 0.4375, 0.5625, 0.6875, 0.8125, 0.9375, 1, 1, 1, 1]
        assert slices_matrix(12, 4.0, 0.5) @ step == pytest.approx(expected)

    def test_slices_no_thicker_than_a_voxel_change_nothing(self):
        assert np.array_equal(slices_matrix(8, 1.0, 0.3), np.eye(8))

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_slices_lie_across_the_axis_drawn(self, axis):
        image = torch.rand(2, 1, 12, 14, 16)
        thick = still(slice_mm=4.0, slice_axis=axis)
        moved = lower_resolution(image.clone(), [still(), thick], (1.0, 1.0, 1.0))
        assert torch.equal(moved[0], image[0])
        matrix = torch.from_numpy(slices_matrix(image.shape[axis + 2], 4.0, 0.0)).float()
        expected = torch.tensordot(image[1, 0], matrix, dims=([axis], [1])).movedim(-1, axis)
        assert torch.allclose(moved[1, 0], expected, atol=1e-5)


class TestTones:
    IMAGE = torch.tensor([0.0, 0.01, 0.25, 0.5, 1.0]).view(1, 1, 1, 1, 5)

    def test_gamma_is_a_power(self):
        image = change_tones(self.IMAGE.repeat(2, 1, 1, 1, 1), CT.expand(2), [still(), still(gamma=2.0)])
        assert _values(image) == [0, 0.01, 0.25, 0.5, 1, 0, 0.0001, 0.0625, 0.25, 1]

    def test_inversion_turns_tissue_round_and_leaves_air_dark(self):
        image = change_tones(self.IMAGE.clone(), MR, [still(inverted=True)])
        assert _values(image) == [0, 0.198, 0.75, 0.5, 0]

    def test_ct_is_not_inverted(self):
        assert torch.equal(change_tones(self.IMAGE.clone(), CT, [still(inverted=True)]), self.IMAGE)
