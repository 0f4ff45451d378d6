"""A NIfTI file's header says what a reader allocates: what is no image of a head is refused before anything is read."""

from __future__ import annotations

import gzip
import resource
import struct
from pathlib import Path

import numpy as np
import pytest

from aneurysm.dicom.frame import Decision
from aneurysm.processes.children import Child, Limits
from aneurysm.rawdata.masks import MOST_VOXELS, read_small_numbers

VALUES = (np.arange(4 * 3 * 2) % 14).reshape(4, 3, 2)
KINDS = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64, "i1": 256, "u2": 512, "u4": 768, "i8": 1024, "u8": 1280}


def nifti_1(shape: tuple[int, ...] = (2, 3, 4), kind: int = 2, offset: float = 352, order: str = "<") -> bytearray:
    """A header of 348 bytes and an empty extension: axes along LPS, 1 mm."""
    head = bytearray(352)
    struct.pack_into(f"{order}i", head, 0, 348)
    struct.pack_into(f"{order}8h", head, 40, len(shape), *shape, *[1] * (7 - len(shape)))
    struct.pack_into(f"{order}2h", head, 70, kind, 8)
    struct.pack_into(f"{order}8f", head, 76, 1, 1, 1, 1, 1, 1, 1, 1)
    struct.pack_into(f"{order}3f", head, 108, offset, 1, 0)
    struct.pack_into(f"{order}2h", head, 252, 0, 1)
    for row, values in enumerate(((-1, 0, 0, 5), (0, -1, 0, 6), (0, 0, 1, 7))):
        struct.pack_into(f"{order}4f", head, 280 + 16 * row, *values)
    head[344:348] = b"n+1\0"
    return head


def nifti_2(shape: tuple[int, ...] = (2, 3, 4), kind: int = 2, offset: int = 544) -> bytearray:
    head = bytearray(544)
    struct.pack_into("<i8s2h", head, 0, 540, b"n+2\0\r\n\x1a\n", kind, 8)
    struct.pack_into("<8q", head, 16, len(shape), *shape, *[1] * (7 - len(shape)))
    struct.pack_into("<8d", head, 104, 1, 1, 1, 1, 1, 1, 1, 1)
    struct.pack_into("<q2d", head, 168, offset, 1, 0)
    struct.pack_into("<2i", head, 344, 0, 1)
    for row, values in enumerate(((-1, 0, 0, 5), (0, -1, 0, 6), (0, 0, 1, 7))):
        struct.pack_into("<4d", head, 400 + 32 * row, *values)
    return head


def write(tmp_path: Path, head: bytes, content: bytes, *, compressed: bool = False) -> Path:
    path = tmp_path / ("x_cowseg.nii.gz" if compressed else "x_cowseg.nii")
    path.write_bytes(gzip.compress(bytes(head) + content) if compressed else bytes(head) + content)
    return path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", KINDS)
def test_whole_numbers_of_every_type_are_read(tmp_path: Path, dtype: str, compressed: bool) -> None:
    head = nifti_1(kind=KINDS[dtype])
    struct.pack_into("<h", head, 72, 8 * np.dtype(dtype).itemsize)
    found = read_small_numbers(write(tmp_path, head, VALUES.astype(dtype).tobytes(), compressed=compressed), 13)
    assert not isinstance(found, Decision), found
    image, values = found
    np.testing.assert_array_equal(values, VALUES)
    assert values.dtype == np.uint8
    assert image.GetPixelIDTypeAsString() == "8-bit unsigned integer"
    assert image.GetOrigin() == (-5.0, -6.0, 7.0)  # NIfTI's x and y run to right and back in LPS


@pytest.mark.parametrize(
    ("head", "content"),
    [
        pytest.param(nifti_1(shape=(2, 3, 4, 1, 1)), VALUES, id="trailing dimensions of one"),
        pytest.param(nifti_1(offset=400) + bytes(48), VALUES, id="an extension"),
        pytest.param(nifti_1(order=">"), VALUES, id="big endian"),
    ],
)
def test_what_tools_write_is_read(tmp_path: Path, head: bytes, content: np.ndarray) -> None:
    found = read_small_numbers(write(tmp_path, head, content.astype("u1").tobytes()), 13)
    assert not isinstance(found, Decision), found
    np.testing.assert_array_equal(found[1], VALUES)


REFUSED = {
    "nothing": (b"", "not NIfTI"),
    "no NIfTI": (b"something else" * 100, "not NIfTI"),
    "a header that breaks off": (nifti_1()[:300], "not NIfTI"),
    "a pair of files": (nifti_1().replace(b"n+1\0", b"ni1\0"), "not NIfTI"),
    "30,000 x 30,000 x 30,000": (nifti_1(shape=(30000, 30000, 30000)), "larger than any head"),
    "one slice too many": (nifti_1(shape=(512, 512, 2049)), "larger than any head"),
    "numbers of 8 bytes, too many of them": (nifti_1(shape=(512, 512, 1100), kind=64), "larger than any head"),
    "NIfTI-2, 10^18 voxels": (nifti_2(shape=(10**6, 10**6, 10**6)), "larger than any head"),
    "a time series": (nifti_1(shape=(2, 3, 4, 5)), "not a 3D image"),
    "no dimension": (nifti_1(shape=()), "not a 3D image"),
    "a negative dimension": (nifti_1(shape=(2, -3, 4)), "not a 3D image"),
    "a dimension of 0": (nifti_1(shape=(2, 0, 4)), "not a 3D image"),
    "colours": (nifti_1(kind=128), "data type 128"),
    "complex numbers": (nifti_1(kind=32), "data type 32"),
    "bits": (nifti_1(kind=1), "data type 1"),
    "voxels far behind": (nifti_1(offset=3e9), "places the voxels"),
    "voxels at no place": (nifti_1(offset=float("nan")), "places the voxels"),
    "voxels before the file": (nifti_1(offset=-1e9), "places the voxels"),
    "voxels that break off": (nifti_1(shape=(100, 100, 100)), "by its header 1000352 are needed"),
}


@pytest.mark.parametrize(("content", "says"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_image_of_a_head_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    found = read_small_numbers(write(tmp_path, content, VALUES.astype("u1").tobytes()), 13)
    assert isinstance(found, Decision)
    assert says in found.detail
    assert found.code in ("mask_unreadable", "mask_unusable")


@pytest.mark.parametrize("values", [[0, 14], [0, -1], [0, 0.5]], ids=str)
def test_values_that_are_no_small_whole_numbers_are_refused(tmp_path: Path, values: list[float]) -> None:
    head = nifti_1(shape=(2, 1, 1), kind=64)
    found = read_small_numbers(write(tmp_path, head, np.array(values, "f8").tobytes()), 13)
    assert isinstance(found, Decision)
    assert "not whole numbers" in found.detail


def test_gigabytes_behind_the_voxels_are_not_inflated(tmp_path: Path) -> None:
    path = tmp_path / "x_cowseg.nii.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(bytes(nifti_1()) + VALUES.astype("u1").tobytes())
        for _ in range(30):
            file.write(bytes(10_000_000))
    found = read_small_numbers(path, 13)
    assert isinstance(found, Decision), "compressed it is longer than what its header asks for"
    assert "by its header" in found.detail


def test_a_gzip_header_without_end_is_not_looked_through(tmp_path: Path) -> None:
    """The name of the original file, which ends with the first 0, may be of any length."""
    (tmp_path / "x_cowseg.nii.gz").write_bytes(b"\x1f\x8b\x08\x08" + bytes(6) + b"x" * 50_000_000)
    found = read_small_numbers(tmp_path / "x_cowseg.nii.gz", 13)
    assert isinstance(found, Decision)
    assert "not NIfTI" in found.detail


def read_in_child(path: Path) -> int:
    read_small_numbers(path, 13)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_too_little_memory_is_no_damaged_mask(tmp_path: Path) -> None:
    """500 MB of voxels in 500 kB: within the bounds, but not within the limit of the series."""
    path = tmp_path / "x_cowseg.nii.gz"
    shape = (512, 512, MOST_VOXELS // 2**18)
    with gzip.open(path, "wb") as file:
        file.write(bytes(nifti_1(shape=shape)))
        for _ in range(512):
            file.write(bytes(2**20))
    child = Child()
    try:
        with pytest.raises(MemoryError):
            child.run(read_in_child, path, limits=Limits(memory_mb=400))
        assert child.run(read_in_child, path) < 1_400_000_000
    finally:
        child.stop()
        child.wait()
