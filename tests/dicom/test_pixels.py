"""From the bytes of a file to Hounsfield units: every syntax, every width, every sign, every odd rescale."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from aneurysm.dicom.pixels import PixelReader
from tests.support.acquisition import acquire
from tests.support.cached import cached, rejected
from tests.support.pattern import anatomy
from tests.support.pixels import JPEG_BASELINE, JPEG_EXTENDED, JPEG_LOSSLESS, JPEG_LOSSLESS_P14, Storage
from tests.support.series import CT, write_multiframe, write_series
from tests.support.truth import assert_shows

STACK = acquire(slices=8, gap_mm=2, shape=(25, 27))
PATTERN = anatomy(STACK.centre)
MR_PATTERN = anatomy(STACK.centre, base=700)
SIGNED_12 = Storage(16, 12, signed=True)
NATIVE = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
LOSSLESS = [RLELossless, JPEGLSLossless, JPEG2000Lossless, JPEG_LOSSLESS, JPEG_LOSSLESS_P14]


def _name(value: object) -> str:
    return str(getattr(value, "name", value))


@pytest.mark.parametrize(
    "storage",
    [
        pytest.param(CT, id="12 bits unsigned"),
        pytest.param(SIGNED_12, id="12 bits signed"),
        pytest.param(Storage(16, 16, signed=True), id="16 bits signed"),
        pytest.param(Storage(16, 16, signed=False, intercept=-8192), id="16 bits unsigned"),
    ],
)
@pytest.mark.parametrize("syntax", NATIVE + LOSSLESS, ids=_name)
def test_every_lossless_syntax_gives_the_same_values(tmp_path, syntax, storage):
    write_series(tmp_path / "s", STACK, PATTERN, syntax=syntax, storage=storage)
    image = cached(tmp_path / "s")
    assert_shows(image, STACK, PATTERN)
    assert image.meta["source"]["transfer_syntaxes"] == [str(syntax)]


@pytest.mark.parametrize("syntax", LOSSLESS, ids=_name)
@pytest.mark.parametrize("many", [False, True], ids=["file per slice", "multi-frame"])
def test_a_frame_may_be_split_into_several_fragments(tmp_path, syntax, many):
    if many:
        write_multiframe(tmp_path / "s", STACK, MR_PATTERN, syntax=syntax, fragments=3)
        assert_shows(cached(tmp_path / "s"), STACK, MR_PATTERN)
    else:
        write_series(tmp_path / "s", STACK, PATTERN, syntax=syntax, fragments=3)
        assert_shows(cached(tmp_path / "s"), STACK, PATTERN)


@pytest.mark.parametrize(
    "syntax, storage, loss",
    [
        # 8 bits for 1,280 HU: steps of 5; the DCT moves a smooth image by a step or two of quantisation.
        pytest.param(JPEG_BASELINE, Storage(8, 8, signed=False, slope=5.0, intercept=-300), 15, id="baseline"),
        pytest.param(JPEG_EXTENDED, CT, 15, id="extended with 12 bits"),
    ],
)
def test_lossy_jpeg_is_off_by_its_own_loss_and_no_more(tmp_path, syntax, storage, loss):
    stack = acquire(slices=8, gap_mm=2, shape=(26, 28))
    pattern = anatomy(stack.centre)
    write_series(tmp_path / "s", stack, pattern, syntax=syntax, storage=storage)
    assert_shows(cached(tmp_path / "s"), stack, pattern, step=storage.slope, lossy=loss)


def test_slices_of_different_syntaxes_make_one_volume(tmp_path):
    """As after a partial re-compression in an archive."""
    syntaxes = [NATIVE[0], NATIVE[2], NATIVE[3], *LOSSLESS]
    for index, syntax in enumerate(syntaxes):
        write_series(tmp_path / "s", STACK.take([index]), PATTERN, uid="1.2.3.4", syntax=syntax, label=str(index))
    image = cached(tmp_path / "s")
    assert_shows(image, STACK, PATTERN)
    assert set(image.meta["source"]["transfer_syntaxes"]) == {str(s) for s in syntaxes}


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian], ids=_name)
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize(
    "bits, high_bit",
    [
        pytest.param(12, 11, id="low 12 of 16 bits"),
        pytest.param(12, 15, id="high 12 of 16 bits"),
        pytest.param(13, 13, id="13 bits in the middle"),
        pytest.param(15, 14, id="15 of 16 bits"),
    ],
)
@pytest.mark.parametrize("garbage", [None, 7], ids=["clean", "garbage in the unused bits"])
def test_only_the_stored_bits_count(tmp_path, bits, high_bit, signed, syntax, garbage):
    storage = Storage(16, bits, high_bit, signed=signed, intercept=0.0 if signed else -1024.0, garbage=garbage)
    write_series(tmp_path / "s", STACK, PATTERN, storage=storage, syntax=syntax)
    assert_shows(cached(tmp_path / "s"), STACK, PATTERN)


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless], ids=_name)
def test_eight_bits_are_enough_for_coarse_values(tmp_path, syntax, signed):
    storage = Storage(8, 8, signed=signed, slope=5.0, intercept=340.0 if signed else -300.0)
    write_series(tmp_path / "s", STACK, PATTERN, storage=storage, syntax=syntax)
    assert_shows(cached(tmp_path / "s"), STACK, PATTERN, step=5.0)


def test_odd_sizes_of_eight_bits_are_padded_and_not_read_as_pixels(tmp_path):
    stack = acquire(slices=8, gap_mm=2, shape=(25, 25))
    pattern = anatomy(stack.centre)
    storage = Storage(8, 8, signed=False, slope=5.0, intercept=-300.0)
    write_series(tmp_path / "s", stack, pattern, storage=storage)
    assert_shows(cached(tmp_path / "s"), stack, pattern, step=5.0)


@pytest.mark.parametrize("syntax", NATIVE, ids=_name)
@pytest.mark.parametrize("shape", [(57, 48), (52, 32)], ids=str)
def test_sizes_that_look_like_digits_are_read_as_numbers(tmp_path, shape, syntax):
    """57 is stored as the bytes of the text "9"; without a VR in the file only the tag tells which is meant."""
    stack = acquire(slices=6, gap_mm=2, shape=shape)
    pattern = anatomy(stack.centre, stack.extent_mm)
    write_series(tmp_path / "s", stack, pattern, syntax=syntax)
    image = cached(tmp_path / "s")
    assert image.meta["source"]["shape"] == [6, *shape]
    assert_shows(image, stack, pattern)


def test_each_slice_has_a_rescale_of_its_own(tmp_path):
    storages = [Storage(16, 16, signed=True, slope=0.25 + 0.05 * i, intercept=-1000.0 + 130 * i) for i in range(8)]
    write_series(tmp_path / "s", STACK, PATTERN, storage=storages)
    assert_shows(cached(tmp_path / "s"), STACK, PATTERN)


def test_each_slice_of_an_mr_series_has_a_rescale_of_its_own(tmp_path):
    storages = [Storage(16, 12, signed=False, slope=0.5 + 0.1 * i, intercept=3.0 * i) for i in range(8)]
    write_series(tmp_path / "s", STACK, MR_PATTERN, modality="MR", storage=storages)
    assert_shows(cached(tmp_path / "s"), STACK, MR_PATTERN)


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_monochrome1_is_inverted(tmp_path, modality, signed):
    pattern = PATTERN if modality == "CT" else MR_PATTERN
    storage = Storage(16, 12, signed=signed, intercept=0.0 if signed or modality == "MR" else -1024.0)
    write_series(tmp_path / "s", STACK, pattern, modality=modality, storage=replace(storage, inverted=True))
    assert_shows(cached(tmp_path / "s"), STACK, pattern)


@pytest.mark.parametrize(
    "photometric, samples", [("RGB", 3), ("PALETTE COLOR", 1), ("YBR_FULL", 3)], ids=["RGB", "palette", "YBR"]
)
def test_colour_is_refused_with_its_reason(tmp_path, photometric, samples):
    def edit(dataset: Dataset, index: int) -> None:
        dataset.PhotometricInterpretation = photometric
        dataset.SamplesPerPixel = samples
        if samples == 3:
            dataset.PlanarConfiguration = 0
            dataset.PixelData = bytes(range(250)) * (STACK.shape[0] * STACK.shape[1] * 3 // 250 + 1)
            dataset.PixelData = dataset.PixelData[: STACK.shape[0] * STACK.shape[1] * 3 + 1]
        else:
            for colour in ("Red", "Green", "Blue"):
                setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
                setattr(dataset, f"{colour}PaletteColorLookupTableData", bytes(512))

    storage = Storage(8, 8, signed=False, slope=5.0, intercept=-300.0)
    write_series(tmp_path / "s", STACK, PATTERN, storage=storage, edit=edit)
    assert rejected(tmp_path / "s") == "colour"


def test_a_colour_slice_among_grey_ones_is_dropped(tmp_path):
    stack = acquire()
    pattern = anatomy(stack.centre)

    def edit(dataset: Dataset, index: int) -> None:
        dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "RGB", 3
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit, dataset.PlanarConfiguration = 7, 0
        dataset.PixelData = bytes(32 * 28 * 3)

    write_series(tmp_path / "s", stack, pattern, uid="1.2.3.4")
    write_series(tmp_path / "s", stack.take([3]), pattern, uid="1.2.3.4", label="colour", edit=edit)
    assert_shows(cached(tmp_path / "s"), stack, pattern)


@pytest.mark.parametrize("layout", ["rsna", "free"])
def test_a_series_without_pixels_has_a_row_with_a_reason(tmp_path, layout):
    def edit(dataset: Dataset, index: int) -> None:
        del dataset.PixelData

    folder = "series/1.2.3.4" if layout == "rsna" else "anywhere"
    write_series(tmp_path / "data" / folder, STACK, PATTERN, edit=edit, uid="1.2.3.4")
    assert rejected(tmp_path / "data") == "no_images"


@pytest.mark.parametrize(
    "syntax", [JPEG_LOSSLESS, RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.name
)
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_no_slice_is_decoded_twice(tmp_path, monkeypatch, syntax, modality):
    """A few are looked at before the stack is read: their values, by whatever format, are the ones that are read."""
    decoded = Counter()
    decode = PixelReader._decode

    def count(self, frame):
        decoded[frame.key] += 1
        return decode(self, frame)

    monkeypatch.setattr(PixelReader, "_decode", count)
    storage = Storage(16, 12, signed=modality == "CT", intercept=300.0 if modality == "CT" else 0.0)
    stack = acquire()
    pattern = anatomy(stack.centre, base=300.0 if modality == "CT" else 700.0)
    write_series(tmp_path / "s", stack, pattern, modality=modality, storage=storage, syntax=syntax)
    assert_shows(cached(tmp_path / "s"), stack, pattern)
    assert list(decoded.values()) == [1] * 24


def test_a_deflated_slice_that_breaks_off_within_a_pixel_is_a_missing_one(tmp_path):
    stack = acquire()
    pattern = anatomy(stack.centre)

    def edit(dataset: Dataset, index: int) -> None:
        if index == 11:
            dataset.PixelData = dataset.PixelData[:-2]

    storage = Storage(32, 32, signed=True)
    write_series(tmp_path / "s", stack, pattern, storage=storage, syntax=DeflatedExplicitVRLittleEndian, edit=edit)
    image = cached(tmp_path / "s")
    assert_shows(image, stack.take([i for i in range(24) if i != 11]), pattern)
    assert "unreadable_slice" in image.codes


def test_ct_that_a_wrong_rescale_sends_below_air_has_no_signal(tmp_path):
    def edit(dataset: Dataset, index: int) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = -1, -1024

    values = np.arange(8 * 25 * 27.0).reshape(8, 25, 27) % 2000
    write_series(tmp_path / "s", STACK, values, storage=Storage(16, 12, signed=False, intercept=0.0), edit=edit)
    assert rejected(tmp_path / "s") == "no_signal"


def test_a_series_of_one_value_has_no_signal(tmp_path):
    write_series(tmp_path / "s", STACK, np.zeros((8, 25, 27)), modality="MR")
    assert rejected(tmp_path / "s") == "no_signal"
