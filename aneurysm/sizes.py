"""Bytes -> text: in the unit that fits, and with enough digits to tell two sizes apart."""

from __future__ import annotations

from typing import Final

_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")


def size_text(size: int, digits: int = 1) -> str:
    """Return ``size`` bytes as people read it: ``512 bytes``, ``1.5 KiB``, ``23.0 GiB``; powers of 1024."""
    value, unit = float(size), 0
    # Against what rounding makes of it: 1023.96 KiB are 1.0 MiB, not 1024.0 KiB.
    while unit < len(_UNITS) - 1 and round(value, digits) >= 1024:
        value, unit = value / 1024, unit + 1
    return f"{size} bytes" if unit == 0 else f"{value:.{digits}f} {_UNITS[unit]}"


def two_sizes_text(one: int, other: int) -> tuple[str, str]:
    """Return both sizes as `size_text` does, with as many digits as it takes for different ones to look different."""
    for digits in range(1, 10):
        texts = size_text(one, digits), size_text(other, digits)
        if texts[0] != texts[1] or one == other:
            return texts
    return f"{one} bytes", f"{other} bytes"
