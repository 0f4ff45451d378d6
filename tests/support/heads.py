"""CT of heads in HU with a known answer, and stored values of them in memory: many of them cost less than one file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from aneurysm.dicom.frame import Frame, PixelFormat, Rescale
from aneurysm.dicom.pixels import inverted, used_bits

AIR, BRAIN, CSF, FAT, BONE = -1000.0, 35.0, 8.0, -100.0, 1100.0


@dataclass(frozen=True)
class Head:
    """What a CT shows: an ellipsoid of brain with ventricles, skull, scalp and sinuses, on a table, in air."""

    slices: int = 8
    size: int = 96
    field_mm: float = 230.0
    noise_hu: float = 4.0
    contrast_hu: float = 0.0  # of vessels; 0 for none
    bone_hu: float = BONE
    table: bool = True
    metal: bool = False
    stripped: float | None = None  # HU around a brain without skull
    shift_mm: tuple[float, float] = (0.0, 0.0)
    seed: int = 0

    def hu(self) -> np.ndarray:
        """(slices, rows, columns), float."""
        rng = np.random.default_rng(self.seed)
        at = (np.arange(self.size) - (self.size - 1) / 2) * self.field_mm / self.size
        z = np.linspace(-55, 60, self.slices)[:, None, None]
        y, x = (at - self.shift_mm[0])[None, :, None], (at - self.shift_mm[1])[None, None, :]
        r = np.sqrt((x / 75) ** 2 + (y / 92) ** 2 + (z / 80) ** 2)
        out = np.full((self.slices, self.size, self.size), AIR)
        if self.table:
            table = (y > 100) & (y < 104) & (np.abs(x) < 90) & (z > -1e9)
            out[table] = -150.0
        out[r < 1.0] = FAT
        out[r < 0.97] = 45.0
        out[r < 0.94] = self.bone_hu
        out[r < 0.915] = self.bone_hu * 0.55  # diploe
        out[r < 0.90] = self.bone_hu
        out[r < 0.87] = BRAIN
        out[(np.hypot(x, y * 0.7) < 14) & (np.abs(z) < 25)] = CSF
        out[(np.hypot(x, (y + 70) * 1.0) < 12) & (z < -20) & (r < 0.93)] = AIR  # sinus
        out[(np.abs(np.hypot(x - 30, y + 10) - 0) < 12) & (z < -35) & (r < 0.93)] = self.bone_hu * 1.3  # petrous bone
        if self.contrast_hu:
            for k, (cx, cy) in enumerate(((-25, -20), (25, -20), (0, -30), (10, 40))):
                out[np.broadcast_to(np.hypot(x - cx, y - cy) < 3 + k % 2, out.shape)] = self.contrast_hu
        if self.metal:
            out[(np.hypot(x + 20, y - 5) < 4) & (np.abs(z) < 12)] = 3000.0
        out += rng.normal(0, self.noise_hu, out.shape) if self.noise_hu else 0.0
        if self.stripped is not None:
            out[np.broadcast_to(r >= 0.87, out.shape)] = self.stripped
        return out


@dataclass(frozen=True)
class Stored:
    """How HU are stored, and what the header says of it: of the two, only ``header_*`` reach the reader."""

    bits_allocated: int = 16
    bits_stored: int = 16
    high_bit: int | None = None
    signed: bool = False
    slope: float = 1.0
    intercept: float = -1024.0
    inverted: bool = False

    def cells(self, hu: np.ndarray) -> np.ndarray:
        """Pixel cells, unsigned, values clipped to what the bits hold."""
        low = -(1 << (self.bits_stored - 1)) if self.signed else 0
        high = low + (1 << self.bits_stored) - 1
        values = np.clip(np.rint((hu - self.intercept) / self.slope), low, high).astype(np.int64)
        if self.inverted:
            values = low + high - values
        top = self.bits_stored - 1 if self.high_bit is None else self.high_bit
        whole = (1 << self.bits_allocated) - 1
        if top == self.bits_stored - 1:
            return (values & whole).astype(f"u{self.bits_allocated // 8}")  # signs reach to the top of a cell
        return ((values << (top - self.bits_stored + 1)) & whole).astype(f"u{self.bits_allocated // 8}")

    def frame(self, shape: tuple[int, int], index: int, **header: Any) -> Frame:
        """The frame whose header tells the truth but for ``header``."""
        fmt = PixelFormat(
            rows=shape[0],
            columns=shape[1],
            samples=1,
            photometric="MONOCHROME1" if self.inverted else "MONOCHROME2",
            bits_allocated=self.bits_allocated,
            bits_stored=self.bits_stored,
            high_bit=self.bits_stored - 1 if self.high_bit is None else self.high_bit,
            signed=self.signed,
            transfer_syntax="1.2.840.10008.1.2.1",
        )
        rescale = header.pop("rescale", Rescale(self.slope, self.intercept, "HU"))
        padding = header.pop("padding", None)
        return Frame(
            path=Path(f"{index:04d}"),
            index=0,
            sop_uid=f"1.2.{index}",
            format=replace(fmt, **header),
            pixel_offset=0,
            pixel_length=0,
            pixel_vr="OW",
            position=(0.0, 0.0, float(index)),
            orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
            spacing_mm=(1.0, 1.0),
            rescale=rescale,
            padding=padding,
            instance_number=float(index),
            file_name=f"image 1.2.{index}",
            modality="CT",
        )


class CellReader:
    """Reads frames from cells in memory, as `PixelReader` reads plain pixels from files."""

    def __init__(self, frames: list[Frame], cells: np.ndarray) -> None:
        self._cells = dict(zip((f.key for f in frames), cells, strict=True))
        self.reads = 0

    def read(self, frame: Frame, *, keep: bool = False) -> np.ndarray:
        self.reads += 1
        cells, fmt = self._cells[frame.key], frame.format
        values = used_bits(cells.view(f"{'i' if fmt.signed else 'u'}{cells.itemsize}"), fmt)
        return inverted(values, fmt) if fmt.photometric == "MONOCHROME1" else values
