"""SourceFrame: of each image of a series what places a point in it, so that lesions can be placed without DICOM files.

A volume keeps it of all images that its series had, also of those that are not in the volume: a point in such an image
is a point of the patient all the same.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from aneurysm.dicom.frame import Frame, FrameKey

_TYPES: Final = {"sop": "<u8", "index": "<u4", "frames_in_file": "<u4", "rows": "<u4", "columns": "<u4", "code": "<u2"}
_Column = int | float | str | None
_GEOMETRY: Final = {"position": 3, "orientation": 6, "spacing_mm": 2}


@dataclass(frozen=True)
class SourceFrame:
    """
    One image of a series.

    ``sop`` is the key of its SOPInstanceUID (`sop_key`); ``index`` counts from 0 in a file of ``frames_in_file``.
    ``position``, ``orientation`` and ``spacing_mm`` are as in `aneurysm.dicom.frame.Frame`, None where there is none.
    ``left_out`` is the code of the decision by which the image is not in the volume, or empty.
    """

    sop: int
    index: int
    frames_in_file: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing_mm: tuple[float, ...] | None
    rows: int
    columns: int
    left_out: str


def sop_key(uid: str) -> int:
    """Return the first 8 bytes of the SHA-256 of a SOPInstanceUID, as an integer."""
    return int.from_bytes(hashlib.sha256(uid.encode()).digest()[:8], "little")


def source_frames(frames: Iterable[Frame], used: Iterable[Frame], dropped: Mapping[FrameKey, str]) -> list[SourceFrame]:
    """
    Return the images of a series: ``frames`` are all of them, ``used`` those in the volume, ``dropped`` says why not.

    Of a frame in both the geometry is that of ``used``.
    """
    kept = {f.key: f for f in used}
    found = []
    for frame in {f.key: f for f in (*frames, *kept.values())}.values():
        left_out = "" if frame.key in kept else dropped[frame.key]
        found.append(
            SourceFrame(
                sop_key(frame.sop_uid), frame.index, frame.frames_in_file, frame.position, frame.orientation,
                frame.spacing_mm, frame.format.rows, frame.format.columns, left_out,
            )
        )  # fmt: skip
    return found


class PackedFrames(BaseModel):
    """
    The images of a series as they stand in a volume's metadata, column by column.

    Every column is one number (null: there is none) if all frames have it in common, else a little-endian array in
    base64: of 8-byte floats where it is geometry. ``code`` is an index into ``codes``, of `SourceFrame.left_out`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int
    codes: tuple[str, ...]
    code: _Column
    sop: _Column
    index: _Column
    frames_in_file: _Column
    rows: _Column
    columns: _Column
    position: tuple[_Column, ...]
    orientation: tuple[_Column, ...]
    spacing_mm: tuple[_Column, ...]


def pack_frames(frames: Sequence[SourceFrame]) -> PackedFrames:
    """Return what stands in a volume's metadata."""
    codes = sorted({f.left_out for f in frames})
    columns: dict[str, Any] = {
        name: _packed(np.array([getattr(f, name) for f in frames], _TYPES[name]))
        for name in ("sop", "index", "frames_in_file", "rows", "columns")
    }
    for name, size in _GEOMETRY.items():
        values = np.array([getattr(f, name) or (np.nan,) * size for f in frames], "<f8").reshape(len(frames), size)
        columns[name] = [_packed(values[:, k]) for k in range(size)]
    code = np.array([codes.index(f.left_out) for f in frames], _TYPES["code"])
    return PackedFrames(count=len(frames), codes=codes, code=_packed(code), **columns)


def unpack_frames(packed: PackedFrames, sop_uids: Iterable[str] | None = None) -> list[SourceFrame]:
    """
    Return what `pack_frames` packed, or of that only the images of files of these ``sop_uids``.

    Raises
    ------
    ValueError, IndexError
        It is damaged.
    """
    count = packed.count
    plain = {name: _unpacked(getattr(packed, name), kind, count) for name, kind in _TYPES.items()}
    geometry = {
        name: np.stack([_unpacked(column, "<f8", count) for column in getattr(packed, name)], axis=1)
        for name in _GEOMETRY
    }
    for name, size in _GEOMETRY.items():
        if geometry[name].shape != (count, size):
            raise ValueError(f"{name} has the shape {geometry[name].shape}, expected {(count, size)}")
    named: Any = slice(None)
    if sop_uids is not None:
        keys = np.array([sop_key(uid) for uid in sop_uids], _TYPES["sop"])
        # numpy 2.0's default overflows on keys of 64 bits.
        named = np.isin(plain["sop"], keys, kind="sort")
    columns: dict[str, list[Any]] = {name: plain[name][named].tolist() for name in plain if name != "code"}
    columns |= {name: [_known(row) for row in values[named]] for name, values in geometry.items()}
    columns["left_out"] = [packed.codes[code] for code in plain["code"][named]]
    return [SourceFrame(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def frames_of(frames: Sequence[SourceFrame], sop_uid: str) -> list[SourceFrame]:
    """Return the images of a file."""
    key = sop_key(sop_uid)
    return [f for f in frames if f.sop == key]


def _known(values: NDArray[np.float64]) -> tuple[float, ...] | None:
    return None if np.isnan(values).any() else tuple(values.tolist())


def _packed(column: NDArray[Any]) -> float | int | str | None:
    raw = column.tobytes()
    if raw != raw[: column.itemsize] * len(column):  # not ==, for which NaN is not NaN
        return base64.b64encode(raw).decode("ascii")
    value = column[0].item() if len(column) else 0
    return None if value != value else value


def _unpacked(content: float | str | None, kind: str, count: int) -> NDArray[Any]:
    if not isinstance(content, str):
        if content is None and kind != "<f8":
            raise ValueError("a column of numbers that every frame has is null")
        return np.full(count, np.nan if content is None else content, kind)
    values = np.frombuffer(base64.b64decode(content, validate=True), kind)
    if len(values) != count:
        raise ValueError(f"{len(values)} values of {count} frames")
    return values
