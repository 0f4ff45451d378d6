"""A disk that fails is no damaged slice: the series fails, and is whole when it is tried again."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from pydicom.pixels.decoders import pylibjpeg
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from aneurysm.dicom.header import read_header
from aneurysm.dicom.pixels import PixelReader
from aneurysm.dicom.series import read_series
from aneurysm.errors import system_error
from aneurysm.precaching import build_series
from aneurysm.volume.volume import assemble
from tests.support.acquisition import acquire
from tests.support.cached import run
from tests.support.pattern import anatomy
from tests.support.run_data import write_rsna_data, write_vessel_mask
from tests.support.series import write_series

STACK = acquire(slices=24)
NATIVE = [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian]


def failing(_name: object, *_: object, **__: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def _reference(tmp_path: Path) -> str:
    """The content hash of a cache that is gone again: a failure would keep its volume."""
    found = run(tmp_path / "s")
    voxel_hash = found.image().meta["voxel_hash"]
    shutil.rmtree(found.cache)
    return voxel_hash


@pytest.mark.parametrize("syntax", [*NATIVE, RLELossless], ids=lambda s: s.name)
def test_an_input_error_at_one_slice_is_no_missing_slice(tmp_path, monkeypatch, syntax):
    write_series(tmp_path / "s", STACK, anatomy(STACK.centre), syntax=syntax)
    reference = _reference(tmp_path)
    real, asked = PixelReader.read, []

    def read(self, frame, **options):
        asked.append(frame)
        with monkeypatch.context() as patch:
            for function in ("os.open", "pathlib.Path.open", "pydicom.dcmread") if len(asked) == 7 else ():
                patch.setattr(function, failing)
            return real(self, frame, **options)

    monkeypatch.setattr(PixelReader, "read", read)
    failed = run(tmp_path / "s")
    assert (failed.reason(), failed.row()["status"]) == ("read_error", "failed")
    assert run(tmp_path / "s", retry_failed=True).image().meta["voxel_hash"] == reference


def test_a_file_that_goes_between_header_and_pixels_is_no_missing_slice(tmp_path, monkeypatch):
    written = write_series(tmp_path / "s", STACK, anatomy(STACK.centre))
    reference = _reference(tmp_path)
    file, aside = written.paths[5], tmp_path / "aside"

    def lose_and_assemble(series, spec):
        file.rename(aside)
        return assemble(series, spec)

    with monkeypatch.context() as patch:
        patch.setattr(build_series, "assemble", lose_and_assemble)
        assert run(tmp_path / "s").reason() == "read_error"
    aside.rename(file)
    assert run(tmp_path / "s", retry_failed=True).image().meta["voxel_hash"] == reference


def test_an_input_error_in_a_header_that_pydicom_reads_is_no_file_that_is_not_dicom(tmp_path, monkeypatch):
    (path,) = write_series(tmp_path / "s", STACK.take([0]), anatomy(STACK.centre)).paths
    whole = path.read_bytes()
    path.write_bytes(whole[whole.index(b"\x08\x00") :])  # without preamble
    monkeypatch.setattr("pydicom.dcmread", failing)
    with pytest.raises(OSError, match="Input/output"):
        read_header(path)


def test_a_vessel_mask_that_can_not_be_read_is_not_left_out(tmp_path, monkeypatch):
    (uid,) = write_rsna_data(tmp_path / "data", n_series=1)
    write_vessel_mask(tmp_path / "data", uid, shape=(12, 64, 64))
    real = Path.open

    def fails_for_masks(path: Path, *args: object, **options: object) -> object:
        return failing(path) if path.suffix == ".nii" else real(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fails_for_masks)
        assert run(tmp_path / "data").reason(uid) == "read_error"
    assert "mask_placed" in run(tmp_path / "data", retry_failed=True).image(uid).codes


def test_too_little_memory_for_a_decoder_is_no_damaged_slice(tmp_path, monkeypatch):
    written = write_series(tmp_path / "s", STACK.take([0]), anatomy(STACK.centre), syntax=JPEG2000Lossless)
    (frame,) = read_series(written.uid, written.paths).frames

    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    for name in pylibjpeg._DECODERS[JPEG2000Lossless]:
        monkeypatch.setitem(pylibjpeg._DECODERS[JPEG2000Lossless], name, no_memory)
    with pytest.raises(MemoryError):
        PixelReader().read(frame)


def test_an_error_that_a_decoder_has_with_its_content_is_none_of_the_systems():
    assert system_error(OSError("image file is truncated")) is None
    wrapped = RuntimeError("can't decode")
    wrapped.__context__ = OSError(errno.EIO, "Input/output error")
    assert system_error(wrapped) is wrapped.__context__
