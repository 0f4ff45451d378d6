"""Fragments of encapsulated pixel data: which are found, which frame each belongs to, and how many there may be."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from pydicom import encaps

from aneurysm.dicom.fragments import read_fragments, read_frame
from aneurysm.errors import PixelError

FRAMES = [b"first\xff\xd9\0", b"the second one \xff\xd9\0", b"3rd\xff\xd9\0"]
ITEM, END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0\0\0\0\0"


def item(content: bytes) -> bytes:
    return ITEM + struct.pack("<I", len(content)) + content


def frames_of(path: Path, count: int, offset: int = 0) -> list[bytes]:
    with path.open("rb") as file:
        found = read_fragments(file, offset).of_frames(count, file)
        return [read_frame(file, fragments, 10**6) for fragments in found]


@pytest.mark.parametrize("has_table", [True, False])
@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_frames_are_put_together_of_their_fragments(tmp_path: Path, has_table: bool, pieces: int) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"before" + encaps.encapsulate(FRAMES, fragments_per_frame=pieces, has_bot=has_table) + END)
    assert [frame.rstrip(b"\0") for frame in frames_of(path, 3, offset=6)] == [frame.rstrip(b"\0") for frame in FRAMES]


@pytest.mark.parametrize("table", [b"", struct.pack("<2I", 0, 12)])
def test_all_fragments_are_of_the_only_frame(tmp_path: Path, table: bytes) -> None:
    (tmp_path / "x").write_bytes(item(table) + item(b"ab\xff\xd9") + item(b"cd") + END)
    assert frames_of(tmp_path / "x", 1) == [b"ab\xff\xd9cd"]


def test_a_fragment_that_breaks_off_has_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(item(b"") + ITEM + struct.pack("<I", 2**32 - 2) + b"all there is")
    with (tmp_path / "x").open("rb") as file:
        assert read_fragments(file, 0).fragments == [(16, 12)]


@pytest.mark.parametrize(
    "content, says",
    [
        pytest.param(b"", "no offset table", id="nothing"),
        pytest.param(b"what is this", "byte 0", id="no items"),
        pytest.param(item(b"") + item(b"ab") + b"what is this", "byte 18", id="something between"),
        pytest.param(item(b"") + ITEM + b"\xff" * 4 + b"ab" + END, "byte 8", id="a fragment of undefined length"),
        pytest.param(item(b"") + item(b"ab") + END, "1 fragments, 2 frames", id="too few"),
    ],
)
def test_damaged_fragments_are_an_error(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(PixelError, match=says):
        frames_of(tmp_path / "x", 2)


def test_a_million_fragments_are_damage(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(item(b"") + item(b"") * 1_000_000 + END)
    with (tmp_path / "x").open("rb") as file, pytest.raises(PixelError, match="more than 200000"):
        read_fragments(file, 0)


def test_an_offset_table_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x").open("w+b") as file:
        file.write(ITEM + struct.pack("<I", 2**31))
        file.seek(2**31 + 8)
        file.write(item(b"ab") + END)
        file.flush()
        found = read_fragments(file, 0)
    assert len(found.offsets) == 200_000
    assert found.fragments == [(2**31 + 16, 2)]


def test_a_frame_that_is_longer_compressed_than_plain_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x").open("w+b") as file:
        file.write(item(b"") + ITEM + struct.pack("<I", 2**31))
        file.seek(2**31 + 16)
        file.write(END)
        file.flush()
        (fragments,) = read_fragments(file, 0).of_frames(1, file)
        with pytest.raises(PixelError, match="2147483648 bytes"):
            read_frame(file, fragments, limit=10**6)
