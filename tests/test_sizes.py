"""Sizes as people read them: the unit that fits, and never two that look the same and are not."""

from __future__ import annotations

import pytest

from aneurysm.sizes import size_text, two_sizes_text


@pytest.mark.parametrize(
    "size, text",
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (16 * 2**20, "16.0 MiB"),
        (23 * 2**30, "23.0 GiB"),
        (5 * 2**40, "5.0 TiB"),
        (2**70, "1048576.0 PiB"),
    ],
)
def test_the_unit_fits(size, text):
    assert size_text(size) == text


@pytest.mark.parametrize(
    "one, other, texts",
    [
        (17 * 2**20, 3 * 2**20, ("17.0 MiB", "3.0 MiB")),
        (3 * 2**30, 3 * 2**30 - 2**20, ("3.000 GiB", "2.999 GiB")),
        (2**30, 2**30 - 2**20, ("1.0 GiB", "1023.0 MiB")),
        (2**40, 2**40 - 1, ("1.000000000 TiB", "1023.999999999 GiB")),
        (2**50, 2**50 - 1, ("1125899906842624 bytes", "1125899906842623 bytes")),
        (2**30, 2**30, ("1.0 GiB", "1.0 GiB")),
    ],
)
def test_two_sizes_differ_in_what_is_shown_if_they_do(one, other, texts):
    assert two_sizes_text(one, other) == texts
