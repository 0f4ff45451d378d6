"""What places lesions again comes back from a volume's metadata to the bit, compact where frames have it in common."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from aneurysm.annotations.frames import PackedFrames, SourceFrame, frames_of, pack_frames, sop_key, unpack_frames


def frame(number: int, **changes) -> SourceFrame:
    facts = {
        "sop": sop_key(f"1.2.{number}"), "index": 0, "frames_in_file": 1, "position": (-10.5, 3.0, 0.1 * number),
        "orientation": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), "spacing_mm": (0.4, 0.4), "rows": 512, "columns": 500,
        "left_out": "",
    }  # fmt: skip
    return SourceFrame(**(facts | changes))


FRAMES = {
    "none": [],
    "one": [frame(1)],
    "a stack": [frame(k) for k in range(300)],
    "one file of many frames": [frame(1, index=k, frames_in_file=9, position=(0.0, 0.0, k / 3)) for k in range(9)],
    "some without geometry, some left out": [
        frame(1),
        frame(2, position=None, left_out="without_geometry"),
        frame(3, orientation=None, spacing_mm=None, left_out="without_geometry"),
        frame(4, left_out="duplicate_slices", rows=2**31),
    ],
    "none with geometry": [frame(k, position=None) for k in range(3)],
    "numbers that are hard to write": [frame(k, position=(1 / 3, np.nextafter(1, 2), -0.0 * k)) for k in range(2)],
}


@pytest.mark.parametrize("which", FRAMES)
def test_frames_come_back_from_json_to_the_bit(which):
    frames = FRAMES[which]
    again = unpack_frames(PackedFrames.model_validate_json(pack_frames(frames).model_dump_json()))
    assert again == frames
    for ours, theirs in zip(again, frames):
        assert struct.pack("3d", *(ours.position or (0,) * 3)) == struct.pack("3d", *(theirs.position or (0,) * 3))


def test_a_stack_of_300_slices_takes_7_kilobytes():
    content = pack_frames(FRAMES["a stack"])
    assert len(content.model_dump_json(indent=2)) < 7000
    assert content.position[:2] == (-10.5, 3.0)
    assert content.rows == 512


def test_files_are_known_by_the_sha256_of_their_uid():
    """The first 8 bytes, little-endian: as docs/cache.md says."""
    assert sop_key("1.2.840.1") == int.from_bytes(bytes.fromhex("f9a13599155b7052"), "little")
    frames = FRAMES["a stack"]
    assert frames_of(frames, "1.2.7") == [frames[7]]
    assert frames_of(frames, "1.2.300") == []


def test_of_some_files_only_their_frames_are_unpacked():
    frames = [*FRAMES["a stack"], *(frame(7, index=k, left_out="duplicate_slices") for k in (1, 2))]
    content = pack_frames(frames)
    for uids in (["1.2.7"], ["1.2.299", "1.2.300", "1.2.0"], ["1.2.300"], []):
        expected = [f for f in frames if f.sop in {sop_key(uid) for uid in uids}]
        assert unpack_frames(content, uids) == expected


@pytest.mark.parametrize(
    "change", [{"count": 4}, {"sop": "AAAA"}, {"sop": "no base64!"}, {"code": 7}, {"position": [0, 0]}, {"rows": None}]
)
def test_damaged_metadata_are_refused(change):
    content = pack_frames([frame(k) for k in range(3)])
    with pytest.raises((ValueError, TypeError, LookupError)):
        unpack_frames({**content, **change})
