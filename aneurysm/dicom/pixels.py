"""Frame -> stored integers: read at an offset where pixels are plain, else decoded, a frame at a time."""

from __future__ import annotations

import logging
import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import encaps
from pydicom.pixels.decoders.base import get_decoder

from aneurysm.dicom.codestream import check_stream, rle_segments, unpacked_size
from aneurysm.dicom.deflated import inflate_into
from aneurysm.dicom.encoding import (
    DEFLATED,
    EXPLICIT_BIG,
    JPEG,
    JPEG_2000,
    JPEG_EXTENDED,
    JPEG_LS,
    NATIVE,
    RLE,
    WHOLE_CELLS,
)
from aneurysm.dicom.fragments import Fragment, open_buffered, read_fragments, read_frame
from aneurysm.dicom.frame import Frame, FrameKey, PixelFormat
from aneurysm.dicom.header import quiet_pydicom
from aneurysm.errors import PixelError, system_error

Pixels = NDArray[Any]

# The fastest first; each measured on 12-bit CT slices by `make bench`'s data. gdcm serves what is not listed.
_PLUGINS: Final = {
    **dict.fromkeys(JPEG_LS, ("pyjpegls", "gdcm")),
    **dict.fromkeys(JPEG_2000, ("pylibjpeg", "gdcm")),
    RLE: ("pylibjpeg", "pydicom"),
}
_DEFAULT_PLUGINS: Final = ("gdcm",)
_MOST_EXPANDED: Final = 2
_MOST_HEADER: Final = 2**20
"""A compressed frame is at most this many times as long as the pixels, and this many bytes more: tables, metadata."""
_MOST_KEPT: Final = 2**25
"""Bytes of decoded slices that are kept to be read again: 64 of 512 x 512, three times what a usual series asks for."""
_MAX_INFLATED: Final = 2**30
"""Bytes of pixels of a deflated file, which are held at once: 2,000 frames of 512 x 512."""


def _raise_memory_error(record: logging.LogRecord) -> bool:
    # pydicom logs what a plugin raised, and goes on to say that it can't be decoded.
    if record.exc_info and isinstance(record.exc_info[1], MemoryError):
        raise record.exc_info[1]
    return True


logging.getLogger("pydicom.pixels.decoders.base").addFilter(_raise_memory_error)


class PixelReader:
    """
    Reads frames one at a time, so that memory is bounded by a frame and not by a series.

    Of a compressed multi-frame file it is remembered where its frames are, and of a deflated one all of them are kept,
    while frames of that file are asked for.

    Some slices are looked at before all are read, and decoding is what takes the time: those are kept until then.
    """

    def __init__(self) -> None:
        self._file: Path | None = None
        self._fragments: list[list[Fragment]] = []
        self._inflated = np.empty(0, np.uint8)
        self._buffer = np.empty(0, np.uint8)
        self._kept: dict[tuple[FrameKey, PixelFormat | None], Pixels] = {}

    def read(self, frame: Frame, *, keep: bool = False) -> Pixels:
        """
        Return the stored values of ``frame``: (rows, columns), integers, unused bits removed, sign extended.

        MONOCHROME1 is inverted within the range of BitsStored, so that brighter is more. Rescale is not applied. The
        array may be a view of a buffer that the next `read` fills again: copy what is to be kept. With ``keep`` the
        next `read` of the frame, by this format or another, needs no decoder.

        Raises
        ------
        PixelError
            The pixels break off, can't be decoded, or are of an unsupported kind.
        OSError
            The operating system can't read the file: that says nothing about its pixels.
        """
        fmt = frame.format
        cells = self._native(frame) if fmt.transfer_syntax in NATIVE else self._decoded(frame, keep=keep)
        stored = used_bits(cells, fmt) if fmt.transfer_syntax in WHOLE_CELLS else cells
        return inverted(stored, fmt) if fmt.photometric == "MONOCHROME1" else stored

    def same_pixels(self, a: Frame, b: Frame) -> bool:
        """Return True if two frames hold the same values; frames that can't be read hold none."""
        try:
            return a.rescale == b.rescale and np.array_equal(self.read(a).copy(), self.read(b))
        except PixelError:
            return False

    def _native(self, frame: Frame) -> Pixels:
        fmt = frame.format
        dtype = _stored_dtype(fmt)
        count = fmt.rows * fmt.columns
        first = frame.index * count
        # Two 8-bit pixels make one big-endian word, so neighbours are swapped: of an odd frame with one beyond it.
        in_words = fmt.bits_allocated == 8 and frame.pixel_vr == "OW" and fmt.transfer_syntax == EXPLICIT_BIG
        start, stop = (first & ~1, first + count + 1 & ~1) if in_words else (first, first + count)
        skip, end = start * dtype.itemsize, stop * dtype.itemsize
        if frame.pixel_offset is None or end > frame.pixel_length:
            raise PixelError(
                f"{frame.name}: {frame.pixel_length} bytes of pixel data, frame {frame.index} of {fmt.rows} x "
                f"{fmt.columns} ends at {end}"
            )
        if fmt.transfer_syntax == DEFLATED:
            self._inflate(frame, frame.pixel_offset, frame.frames_in_file * count * dtype.itemsize)
            data = self._inflated[skip:end]
            values = data[: len(data) // dtype.itemsize * dtype.itemsize].view(dtype)
        else:
            values = self._from_file(frame.path, dtype, stop - start, frame.pixel_offset + skip)
        if len(values) != stop - start:
            raise PixelError(f"{frame.name}: the file breaks off after {len(values)} of {stop - start} pixels")
        if in_words:
            values = values.reshape(-1, 2)[:, ::-1].reshape(-1)[first - start :][:count]
        if not dtype.isnative:
            values = values.astype(dtype.newbyteorder("="))
        return values.reshape(fmt.rows, fmt.columns)

    def _from_file(self, path: Path, dtype: np.dtype[Any], count: int, offset: int) -> Pixels:
        # One buffer for all frames: the pages of a new one cost more than the reading.
        size = count * dtype.itemsize
        if len(self._buffer) < size:
            self._buffer = np.empty(size, np.uint8)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            got = os.preadv(descriptor, [self._buffer[:size].data], offset)
        finally:
            os.close(descriptor)
        return self._buffer[: got // dtype.itemsize * dtype.itemsize].view(dtype)

    def _inflate(self, frame: Frame, offset: int, size: int) -> None:
        """Inflate the ``size`` bytes that the matrix and the number of frames ask for, and nothing behind them."""
        if self._file == frame.path:
            return
        if size > _MAX_INFLATED:
            raise PixelError(f"{frame.name}: {size} bytes of deflated pixel data; up to {_MAX_INFLATED} are read")
        self._file, self._inflated = None, np.empty(0, np.uint8)
        target = np.empty(size, np.uint8)  # takes no memory before something is written
        try:
            self._inflated = target[: inflate_into(frame.path, offset, target)]
        except struct.error as error:
            raise PixelError(f"{frame.name} can't be inflated: {error}") from error
        self._file = frame.path

    def _decoded(self, frame: Frame, *, keep: bool) -> Pixels:
        fmt = frame.format
        # Whole cells are the same by any format.
        key = frame.key, None if fmt.transfer_syntax in WHOLE_CELLS else replace(fmt, photometric="")
        cells = self._kept.pop(key, None)
        if cells is None:
            cells = self._decode(frame)
        if keep and sum(c.nbytes for c in self._kept.values()) + cells.nbytes <= _MOST_KEPT:
            self._kept[key] = cells
        return cells.view(_stored_dtype(fmt))

    def _decode(self, frame: Frame) -> Pixels:
        fmt = frame.format
        try:
            with quiet_pydicom():
                encoded = self._encoded_frame(frame)
                precision = check_stream(encoded, fmt)
                values = _decode_jpeg(encoded, fmt, precision) if fmt.transfer_syntax in JPEG else _decode(encoded, fmt)
        except PixelError as error:
            raise PixelError(f"{frame.name} ({fmt.transfer_syntax}): {error}") from error
        except Exception as error:
            if (fault := system_error(error)) is not None:
                raise fault from None
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise PixelError(f"{frame.name} ({fmt.transfer_syntax}) can't be decoded: {first_line}") from error
        if values.shape != (fmt.rows, fmt.columns):
            raise PixelError(f"{frame.name}: decoded to {values.shape}, not to {fmt.rows} x {fmt.columns}")
        return values

    def _encoded_frame(self, frame: Frame) -> bytes:
        if frame.pixel_offset is None or frame.pixel_length >= 0:
            raise PixelError("compressed transfer syntax, but pixel data of defined length")
        with open_buffered(frame.path) as file:
            if self._file != frame.path:
                self._file = None
                self._fragments = read_fragments(file, frame.pixel_offset).of_frames(frame.frames_in_file, file)
                self._file = frame.path
            if frame.index >= len(self._fragments):
                raise PixelError(f"{len(self._fragments)} compressed frames, no frame {frame.index}")
            limit = _MOST_EXPANDED * frame.format.frame_bytes + _MOST_HEADER
            return read_frame(file, self._fragments[frame.index], limit)


def _stored_dtype(fmt: PixelFormat) -> np.dtype[Any]:
    order = ">" if fmt.transfer_syntax == EXPLICIT_BIG else "<"
    return np.dtype(f"{order}{'i' if fmt.signed else 'u'}{fmt.bits_allocated // 8}")


def used_bits(values: Pixels, fmt: PixelFormat) -> Pixels:
    """Move HighBit to the top and back again: bits above it fall out, and a sign is extended (PS3.5, 8.1.1)."""
    above = fmt.bits_allocated - 1 - fmt.high_bit
    unused = fmt.bits_allocated - fmt.bits_stored
    if unused == 0:
        return values
    if not fmt.signed and above == unused and (values.size == 0 or int(values.max()) < 1 << fmt.bits_stored):
        return values
    return (values << above) >> unused


def inverted(values: Pixels, fmt: PixelFormat) -> Pixels:
    """Return values upside down within the range of BitsStored: what MONOCHROME1 shows."""
    # In two's complement both maximum + minimum and, unsigned, the maximum are what `~` gives within the used bits.
    flipped = ~values
    return flipped if fmt.signed else flipped & values.dtype.type((1 << fmt.bits_stored) - 1)


def _decode(encoded: bytes, fmt: PixelFormat) -> Pixels:
    decoder = get_decoder(fmt.transfer_syntax)  # NotImplementedError: a syntax that no plugin serves
    options: dict[str, Any] = {
        "rows": fmt.rows,
        "columns": fmt.columns,
        "samples_per_pixel": fmt.samples,
        "photometric_interpretation": fmt.photometric,
        "bits_allocated": fmt.bits_allocated,
        "bits_stored": fmt.bits_stored,
        "pixel_representation": int(fmt.signed),
        "number_of_frames": 1,
        "planar_configuration": 0,
        "pixel_keyword": "PixelData",
        "correct_unused_bits": fmt.transfer_syntax not in WHOLE_CELLS,  # HighBit may be anywhere
    }
    buffer = encaps.encapsulate([encoded], has_bot=False)
    if fmt.transfer_syntax in JPEG_LS and not _has_end(encoded):
        # CharLS looks for the end of a stream for seconds.
        raise PixelError("the JPEG-LS stream has no end")
    error: BaseException | None = None
    for plugin in _PLUGINS.get(fmt.transfer_syntax, _DEFAULT_PLUGINS):
        if plugin == "pydicom":
            _check_unpacked(encoded, fmt)
        try:
            values, _ = decoder.as_array(buffer, index=0, raw=True, decoding_plugin=plugin, **options)
        except (MemoryError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as failure:  # noqa: BLE001 - a panic in Rust is no Exception; the next plugin may be able to
            error = error or failure
            continue
        return values
    raise PixelError(f"no plugin decodes it: {str(error or 'none is there')[:160]}")


def _check_unpacked(encoded: bytes, fmt: PixelFormat) -> None:
    """Raise `PixelError` over RLE that unpacks to far more than its frame: pydicom would unpack all of it."""
    most = fmt.rows * fmt.columns + _MOST_HEADER
    if any(unpacked_size(segment, most) > most for segment in rle_segments(encoded)):
        raise PixelError("the RLE segments are longer than the frame")


def _decode_jpeg(encoded: bytes, fmt: PixelFormat, precision: int) -> Pixels:
    """Decode JPEG of the first standard, lossy or lossless, with libjpeg-turbo; what it refuses goes to gdcm."""
    if fmt.transfer_syntax == JPEG_EXTENDED and precision not in (8, 12):
        # Some encoders write 16 here, which JPEG Extended does not have, and decoders wrap dark pixels to white.
        raise PixelError(f"JPEG Extended with {precision} bits a sample; the standard has 8 and 12")
    if not _has_end(encoded):
        # Decoders fill up a stream that breaks off with grey or black, and say nothing.
        raise PixelError("the JPEG stream has no end")
    try:
        samples = imagecodecs.jpeg8_decode(encoded)
    except (RuntimeError, ValueError) as error:
        if fmt.transfer_syntax == JPEG_EXTENDED:
            raise PixelError(f"no JPEG: {error}") from error
        return _decode(encoded, fmt)
    # JPEG knows no sign: the samples are the stored bits.
    return samples.astype(f"u{fmt.bits_allocated // 8}")


def _has_end(encoded: bytes) -> bool:
    return encoded.rstrip(b"\0").endswith(b"\xff\xd9")
