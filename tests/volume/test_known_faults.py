"""CT whose header is wrong: right HU with a decision, or refused, and never wrong HU; and good CT, which is left alone.

Heads of many kinds, each stored in many ways, with headers that tell the truth or not. Most of it happens in memory.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID

from aneurysm.dicom.frame import Rescale
from aneurysm.errors import Reason, SeriesRejectedError
from aneurysm.volume.stored_values import stored_values
from tests.support.acquisition import acquire
from tests.support.cached import cached, rejected
from tests.support.heads import CellReader, Head, Stored
from tests.support.pixels import Storage
from tests.support.series import write_multiframe, write_series

CLIP = (-1000.0, 2000.0)
PADDED = -2000.0

HEADS = {
    "ordinary": Head(),
    "noise of a sharp kernel": Head(noise_hu=100),
    "no noise": Head(noise_hu=0),
    "contrast agent": Head(contrast_hu=400),
    "metal": Head(metal=True),
    "fills the field": Head(field_mm=150),
    "fills the field, sharp": Head(field_mm=150, noise_hu=100),
    "small in the field": Head(field_mm=450, shift_mm=(90, -80)),
    "dense bone": Head(bone_hu=1700),
    "thin bone": Head(bone_hu=600),
    "two slices": Head(slices=2),
    "few pixels": Head(size=40),
    "large": Head(slices=3, size=256, noise_hu=30),
    "off the middle, no table": Head(shift_mm=(20, 15), table=False),
}
CROPPED = {
    "no air": Head(field_mm=120),
    "within the brain": Head(field_mm=80),
    "within the brain, sharp": Head(field_mm=80, noise_hu=100),
    "stripped to -1000": Head(stripped=-1000),
    "stripped to -1024": Head(stripped=-1024),
    "stripped to 0": Head(stripped=0),
}
HONEST = {
    "12 bits": Stored(bits_stored=12),
    "16 bits": Stored(),
    "signed": Stored(signed=True),
    "signed HU": Stored(signed=True, intercept=0.0),
    "12 signed bits of HU": Stored(bits_stored=12, signed=True, intercept=0.0),
    "intercept -1000": Stored(intercept=-1000.0),
    "intercept -8192": Stored(intercept=-8192.0),
    "half steps": Stored(signed=True, slope=0.5),
    "high 12 bits": Stored(bits_stored=12, high_bit=15),
    "MONOCHROME1": Stored(bits_stored=12, inverted=True),
}
UNSIGNED, RAW = Stored(bits_stored=12), Rescale(1.0, -1024.0)
HU = Stored(signed=True, intercept=0.0)
FAULTS = {
    "12 bits without their sign": (replace(HU, bits_stored=12), {"signed": False}),
    "16 bits without their sign": (HU, {"signed": False}),
    "raw values without their sign": (Stored(signed=True), {"signed": False}),
    "unsigned 12 bits with a sign": (UNSIGNED, {"signed": True}),
    "unsigned 14 bits with a sign": (Stored(bits_stored=14, intercept=-8192.0), {"signed": True}),
    "HU and an intercept": (HU, {"rescale": RAW}),
    "HU and an intercept of -1000": (HU, {"rescale": Rescale(1.0, -1000.0)}),
    "HU, clipped at 0, and an intercept": (Stored(intercept=0.0), {"rescale": RAW}),
    "HighBit 15": (UNSIGNED, {"high_bit": 15}),
    "HighBit 13": (UNSIGNED, {"high_bit": 13}),
    "HighBit 15 of signed": (replace(HU, bits_stored=12), {"high_bit": 15}),
    "shifted by 4": (Stored(bits_stored=12, high_bit=15), {"bits_stored": 16}),
    "shifted by 4, BitsStored 12": (Stored(bits_stored=12, high_bit=15), {"high_bit": 11}),
    "inverted": (Stored(bits_stored=12, inverted=True), {"photometric": "MONOCHROME2"}),
    "inverted, 16 bits": (Stored(inverted=True), {"photometric": "MONOCHROME2"}),
    "inverted, signed": (Stored(signed=True, inverted=True), {"photometric": "MONOCHROME2"}),
    "MONOCHROME1 for display alone": (UNSIGNED, {"photometric": "MONOCHROME1"}),
    "MONOCHROME1 for display alone, signed": (Stored(signed=True), {"photometric": "MONOCHROME1"}),
    "no rescale": (UNSIGNED, {"rescale": Rescale()}),
    "no rescale, signed": (Stored(signed=True), {"rescale": Rescale()}),
    "intercept 0": (UNSIGNED, {"rescale": Rescale(1.0, 0.0)}),
    "no rescale, -1000 meant": (Stored(bits_stored=12, intercept=-1000.0), {"rescale": Rescale()}),
    "intercept +1024": (UNSIGNED, {"rescale": Rescale(1.0, 1024.0)}),
    "slope and intercept swapped": (UNSIGNED, {"rescale": Rescale(-1024.0, 1.0)}),
    "slope 2": (UNSIGNED, {"rescale": Rescale(2.0, -1024.0)}),
    "slope 0.5": (UNSIGNED, {"rescale": Rescale(0.5, -1024.0)}),
    "BitsStored 11": (UNSIGNED, {"bits_stored": 11, "high_bit": 10}),
    "BitsStored 10": (UNSIGNED, {"bits_stored": 10, "high_bit": 9}),
    "BitsStored 8": (UNSIGNED, {"bits_stored": 8, "high_bit": 7}),
}
EXPLAINED = {
    "12 bits without their sign": "wrong_sign",
    "16 bits without their sign": "wrong_sign",
    "unsigned 12 bits with a sign": "wrong_sign",
    "unsigned 14 bits with a sign": "wrong_sign",
    "HU and an intercept": "already_hu",
    "HU and an intercept of -1000": "already_hu",
    "HighBit 15": "wrong_high_bit",
    "HighBit 13": "wrong_high_bit",
    "HighBit 15 of signed": "wrong_high_bit",
    "shifted by 4": "shifted_bits",
    "shifted by 4, BitsStored 12": "shifted_bits",
    "inverted": "inverted",
    "inverted, 16 bits": "inverted",
    "inverted, signed": "inverted",
    "MONOCHROME1 for display alone": "monochrome1",
    "MONOCHROME1 for display alone, signed": "monochrome1",
    "no rescale": "missing_intercept",
    "no rescale, signed": "missing_intercept",
    "intercept 0": "missing_intercept",
    "no rescale, -1000 meant": "missing_intercept",
    "intercept +1024": "intercept_sign",
    "slope and intercept swapped": "swapped_rescale",
    "BitsStored 11": "wrong_bits_stored",
    "BitsStored 10": "wrong_bits_stored",
    "BitsStored 8": "wrong_bits_stored",
}
"""What an ordinary head must come out as."""


def read(hu: np.ndarray, stored: Stored, **header):
    """The codes of the decisions and HU within the window, or None if it was refused."""
    frames = [stored.frame(hu.shape[1:], i, **header) for i in range(len(hu))]
    reader = CellReader(frames, stored.cells(hu))
    meaning = stored_values(frames, reader, ct=True)
    out = [v.read(reader, CLIP[0]) * v.slope + v.intercept for v in meaning.values]
    return [d.code for d in meaning.decisions], np.clip(out, *CLIP)


def with_padding(hu: np.ndarray, value: float) -> np.ndarray:
    out, n = hu.copy(), hu.shape[-1]
    y, x = np.ogrid[:n, :n]
    out[:, np.hypot(y - (n - 1) / 2, x - (n - 1) / 2) > n / 2] = value
    return out


def assert_shows_hu(found: np.ndarray, hu: np.ndarray, stored: Stored) -> None:
    """Within 30 HU, but for what the bits can't hold: -1024 and -1000 are 24 HU apart, and air tells neither."""
    low, high = (-(1 << (stored.bits_stored - 1)), 1 << (stored.bits_stored - 1)) if stored.signed else (
        0, 1 << stored.bits_stored
    )  # fmt: skip
    held = np.clip(hu, low * stored.slope + stored.intercept, (high - 1) * stored.slope + stored.intercept)
    off = np.abs(found - np.clip(held, *CLIP)) > 30
    assert off.mean() < 0.001, f"{off.mean():.2%} of the pixels are off, the median is {np.median(found):.0f} HU"


@pytest.mark.parametrize("padding", [None, -1024.0, PADDED, -3024.0], ids=["none", "-1024", "-2000", "-3024"])
@pytest.mark.parametrize("head", [*HEADS, *CROPPED])
def test_good_ct_is_left_alone(head, padding):
    hu = {**HEADS, **CROPPED}[head].hu()
    hu = hu if padding is None else with_padding(hu, padding)
    for name, stored in HONEST.items():
        codes, found = read(hu, stored)
        assert codes == (["monochrome1"] if stored.inverted else []), name
        assert_shows_hu(found, hu, stored)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("head", ["ordinary", "noise of a sharp kernel", "contrast agent", "few pixels"])
def test_a_known_fault_of_a_head_in_air_is_mended_or_refused(head, fault):
    (stored, header), hu = FAULTS[fault], HEADS[head].hu()
    if fault not in EXPLAINED and fault != "raw values without their sign":
        with pytest.raises(SeriesRejectedError) as caught:
            read(hu, stored, **header)
        assert caught.value.reason == Reason.IMPLAUSIBLE_HU
        return
    codes, found = read(hu, stored, **header)
    assert_shows_hu(found, hu, stored)
    if fault in EXPLAINED:
        assert codes == [EXPLAINED[fault]]


@pytest.mark.parametrize("fault", FAULTS)
@given(data=st.data())
@settings(max_examples=12, deadline=None, derandomize=True)
def test_no_fault_makes_wrong_hu_of_any_head(fault, data):
    stored, header = FAULTS[fault]
    head = data.draw(st.sampled_from(list(HEADS.values())))
    head = replace(head, seed=data.draw(st.integers(0, 99)), noise_hu=data.draw(st.sampled_from([0, 3, 20, 60, 100])))
    padding = data.draw(st.sampled_from([None, PADDED, -3024.0]))
    hu = head.hu() if padding is None else with_padding(head.hu(), padding)
    try:
        codes, found = read(hu, stored, **header)
    except SeriesRejectedError:
        return
    if fault != "HU, clipped at 0, and an intercept":
        assert_shows_hu(found, hu, stored)
    assert codes or fault in ("raw values without their sign", "BitsStored 11"), "a fault was mended without a word"


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("sigma", [1.0, 10.0])
def test_a_few_values_below_the_intercept_that_lost_their_sign_are_air(sigma, bits):
    """Of raw values only padding and noise below -1024 HU are negative, and wrap to the brightest there is."""
    stored = Stored(bits_stored=bits, signed=True)
    hu = np.clip(with_padding(Head(noise_hu=sigma).hu(), PADDED), None, 1000)
    codes, found = read(hu, stored, signed=False)
    assert codes == ["wrong_sign"]
    assert_shows_hu(found, hu, stored)


def test_metal_is_not_taken_for_values_that_lost_their_sign():
    hu = Head(metal=True, bone_hu=900, noise_hu=0).hu()
    codes, found = read(hu, UNSIGNED)
    assert codes == []
    assert (found[hu > 2900] == CLIP[1]).all()


def test_overlays_in_the_unused_bits_are_no_pixels():
    hu = Head().hu()
    stored = UNSIGNED
    frames = [stored.frame(hu.shape[1:], i) for i in range(len(hu))]
    cells = stored.cells(hu)
    cells[:, 10:60:3, 20:70] |= 1 << 12
    meaning = stored_values(frames, CellReader(frames, cells), ct=True)
    assert meaning.decisions == []
    assert meaning.values[0].format.bits_stored == 12


def test_bright_padding_that_nobody_declared_becomes_air():
    hu = with_padding(Head().hu(), 3071.0)
    codes, found = read(hu, UNSIGNED)
    assert codes == ["padding_assumed"]
    assert found[:, 0, 0].max() == CLIP[0]
    inside = hu < 3000
    assert np.abs(found - np.clip(hu, *CLIP))[inside].max() < 2


@pytest.mark.parametrize("rescale", [Rescale(1.0, -1024.0), Rescale(1.0, 0.0), Rescale()], ids=str)
def test_a_picture_of_ct_in_8_bits_is_refused(rescale):
    stored = Stored(8, 8, slope=80 / 255, intercept=0.0)  # a brain window
    with pytest.raises(SeriesRejectedError, match="8 bits span 255 HU") as caught:
        read(Head().hu(), stored, rescale=rescale)
    assert caught.value.reason == Reason.IMPLAUSIBLE_HU


@pytest.mark.parametrize("bone_hu", [150.0, 700.0, 1500.0])
def test_a_hollow_phantom_is_left_alone(bone_hu):
    """A shell with air within, as a real scan of a calibration phantom has it: unusual, and right."""
    y, x = np.ogrid[-1:1:128j, -1:1:128j]
    r = np.hypot(y, x * 1.2)
    hu = np.where((r > 0.7) & (r < 0.8), bone_hu, -1000.0)[None].repeat(6, 0)
    hu += np.random.default_rng(0).normal(0, 12, hu.shape)
    codes, found = read(hu, UNSIGNED)
    assert codes == []
    assert_shows_hu(found, hu, UNSIGNED)


@pytest.mark.parametrize("stored", [UNSIGNED, Stored(signed=True)], ids=["unsigned", "signed"])
def test_pixels_that_were_made_random_are_left_alone(stored):
    """Published test data: -1024 to -770 HU, without any structure."""
    hu = np.random.default_rng(0).integers(0, 255, (4, 96, 96)) - 1024.0
    codes, found = read(hu, stored)
    assert codes == []
    assert_shows_hu(found, hu, stored)


def test_air_alone_is_refused():
    hu = np.random.default_rng(0).normal(-990, 20, (6, 64, 64))
    with pytest.raises(SeriesRejectedError) as caught:
        read(hu, Stored())
    assert caught.value.reason == Reason.IMPLAUSIBLE_HU


def test_the_evidence_is_taken_from_five_slices():
    hu = Head(slices=60, size=40).hu()
    stored = Stored()
    frames = [stored.frame(hu.shape[1:], i) for i in range(len(hu))]
    reader = CellReader(frames, stored.cells(hu))
    assert stored_values(frames, reader, ct=True).decisions == []
    assert reader.reads == 5


class TestMR:
    """Of MR's values nothing is known; its bits are the same."""

    SIGNAL = np.clip((Head(noise_hu=0).hu() + 1000) * 1.2, 0, 3000) + np.random.default_rng(0).normal(0, 8, (8, 96, 96))

    @pytest.mark.parametrize("bits", [12, 16])
    def test_undershoot_that_lost_its_sign_is_dark(self, bits):
        stored = Stored(bits_stored=bits, signed=True, intercept=0.0)
        signal = np.clip(self.SIGNAL, -200, 1900)
        frames = [stored.frame(signal.shape[1:], i, signed=False, rescale=Rescale()) for i in range(len(signal))]
        reader = CellReader(frames, stored.cells(signal))
        meaning = stored_values(frames, reader, ct=False)
        assert [d.code for d in meaning.decisions] == ["wrong_sign"]
        assert np.abs(meaning.values[3].read(reader, 0.0) - signal[3]).max() < 1

    def test_high_bit_that_contradicts_the_cells_is_not_believed(self):
        stored = Stored(bits_stored=12, intercept=0.0)
        frames = [stored.frame((96, 96), i, high_bit=15, rescale=Rescale()) for i in range(8)]
        reader = CellReader(frames, stored.cells(np.abs(self.SIGNAL)))
        meaning = stored_values(frames, reader, ct=False)
        assert [d.code for d in meaning.decisions] == ["wrong_high_bit"]
        assert np.abs(meaning.values[3].read(reader, 0.0) - np.abs(self.SIGNAL[3])).max() < 1

    @pytest.mark.parametrize("top", [4095, 2047, 900])
    def test_signal_up_to_the_end_of_its_range_is_left_alone(self, top):
        signal = np.clip(np.abs(self.SIGNAL) * top / 1500, 0, top)
        for stored in (
            Stored(bits_stored=12, intercept=0.0),
            Stored(intercept=0.0),
            Stored(signed=True, intercept=0.0),
        ):
            frames = [stored.frame((96, 96), i, rescale=Rescale()) for i in range(8)]
            assert stored_values(frames, CellReader(frames, stored.cells(signal)), ct=False).decisions == []


STACK = acquire(slices=8, gap_mm=14, shape=(96, 96), spacing_mm=(2.4, 2.4))


def _hu_at(image, hu: np.ndarray, index: int) -> tuple[float, float]:
    """Found and true HU in the middle of the brain, beside the ventricles."""
    row, column = 30, 48
    return image.at(STACK.lps(index, column, row)), float(np.clip(hu[index, row, column], *CLIP))


class TestFromFiles:
    HU = Head(noise_hu=0).hu()

    def test_high_bit_that_contradicts_bits_stored(self, tmp_path):
        def edit(dataset: Dataset, index: int) -> None:
            dataset.HighBit = 15

        write_series(
            tmp_path / "s", STACK, self.HU, storage=Storage(16, 12, signed=False, intercept=-1024.0), edit=edit
        )
        image = cached(tmp_path / "s")
        assert "wrong_high_bit" in image.codes
        found, true = _hu_at(image, self.HU, 4)
        assert found == pytest.approx(true, abs=3)
        assert image.at(STACK.lps(4, 2, 2)) == -1000

    @pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90",
                                        "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.2"])  # fmt: skip
    def test_signs_that_were_lost_come_back_out_of_compressed_pixels(self, tmp_path, syntax):
        wrapped = np.where(self.HU < 0, self.HU + 4096, self.HU)
        storage = Storage(16, 12, signed=False, intercept=0.0)
        write_series(tmp_path / "s", STACK, wrapped, storage=storage, syntax=UID(syntax))
        image = cached(tmp_path / "s")
        assert "wrong_sign" in image.codes
        found, true = _hu_at(image, self.HU, 4)
        assert found == pytest.approx(true, abs=3)
        assert image.at(STACK.lps(4, 2, 2)) == -1000

    def test_a_rescale_that_is_absent_everywhere(self, tmp_path):
        storage = Storage(16, 12, signed=False, slope=None, intercept=None)
        write_series(tmp_path / "s", STACK, self.HU + 1024, storage=storage)
        image = cached(tmp_path / "s")
        assert image.codes & {"missing_intercept", "no_rescale"} == {"missing_intercept"}
        found, true = _hu_at(image, self.HU, 4)
        assert found == pytest.approx(true, abs=30)

    def test_one_value_below_air_is_refused(self, tmp_path):
        write_series(tmp_path / "s", STACK, np.clip(self.HU, None, -910), storage=Storage(16, 16, signed=True))
        assert rejected(tmp_path / "s") == "implausible_hu"


def _mapping(slope: float, intercept: float, unit: str, first: int = 0, last: int = 4095) -> Sequence:
    code, item = Dataset(), Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = unit, "UCUM", "unit"
    item.MeasurementUnitsCodeSequence = Sequence([code])
    item.RealWorldValueSlope, item.RealWorldValueIntercept = slope, intercept
    item.RealWorldValueFirstValueMapped, item.RealWorldValueLastValueMapped = first, last
    for keyword in ("RealWorldValueFirstValueMapped", "RealWorldValueLastValueMapped"):
        item[keyword].VR = "US"
    return Sequence([item])


class TestInPlaceOfARescale:
    HU = np.clip(Head(noise_hu=0).hu(), -1000, 3000)
    BARE = Storage(16, 12, signed=False, slope=None, intercept=None)

    def _write(self, folder, unit: str, *, many: bool, values: np.ndarray) -> None:
        def edit(dataset: Dataset, index: int) -> None:
            dataset.RealWorldValueMappingSequence = _mapping(2.0, -1000.0, unit)

        stored = (values + 1000) / 2
        if many:
            write_multiframe(folder, STACK, stored, modality="CT", storage=self.BARE, edit_frame=edit)
        else:
            write_series(folder, STACK, stored, storage=self.BARE, edit=edit)

    @pytest.mark.parametrize("many", [False, True], ids=["file per slice", "multi-frame"])
    def test_a_real_world_value_mapping_to_hu_is_applied(self, tmp_path, many):
        self._write(tmp_path / "s", "[hnsf'U]", many=many, values=self.HU)
        image = cached(tmp_path / "s")
        assert "real_world_values" in image.codes
        found, true = _hu_at(image, self.HU, 4)
        assert found == pytest.approx(true, abs=3)
        assert image.at(STACK.lps(4, 2, 2)) == -1000

    @pytest.mark.parametrize("many", [False, True], ids=["file per slice", "multi-frame"])
    def test_a_real_world_value_mapping_to_another_unit_is_no_ct(self, tmp_path, many):
        self._write(tmp_path / "s", "mg/ml", many=many, values=self.HU)
        assert rejected(tmp_path / "s") == "unsupported_pixels"

    def test_a_rescale_goes_before_a_real_world_value_mapping(self, tmp_path):
        def edit(dataset: Dataset, index: int) -> None:
            dataset.RealWorldValueMappingSequence = _mapping(2.0, -500.0, "[hnsf'U]")

        write_series(tmp_path / "s", STACK, self.HU, edit=edit)
        image = cached(tmp_path / "s")
        assert "real_world_values" not in image.codes
        found, true = _hu_at(image, self.HU, 4)
        assert found == pytest.approx(true, abs=3)

    @pytest.mark.parametrize("modality", ["CT", "MR"])
    def test_a_modality_lut_is_refused(self, tmp_path, modality):
        def edit(dataset: Dataset, index: int) -> None:
            item = Dataset()
            item.LUTDescriptor, item.ModalityLUTType, item.LUTData = [4096, 0, 16], "HU", [0] * 4096
            item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
            dataset.ModalityLUTSequence = Sequence([item])

        write_series(tmp_path / "s", STACK, self.HU + 1000, modality=modality, storage=self.BARE, edit=edit)
        assert rejected(tmp_path / "s") == "unsupported_pixels"
