"""The page in headless Chromium: offline, without complaints, on a laptop and on a phone, light and dark."""

import re
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.support.browser import CHROMIUM, LAPTOP, PHONE, framed, load, measured

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt install chromium)")


@pytest.fixture
def page(report):
    return report[1] / "report.html"


def test_a_page_that_complains_is_heard(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text("<!DOCTYPE html><body><script>console.error('oh')</script><img src='https://example.org/x.png'>")
    console = load(page, tmp_path).console
    assert any("oh" in line for line in console)


def test_it_loads_without_a_word(page, tmp_path):
    found = load(page, tmp_path)
    assert found.console == []
    assert "RSNA score" in found.document


@pytest.mark.parametrize("width", [LAPTOP[0], PHONE[0], 320])
def test_nothing_but_tables_scrolls_sideways(page, tmp_path, width):
    assert measured(page, tmp_path, width=width)[0] == width


def test_light_and_dark_and_the_notice_on_a_phone(page, tmp_path):
    shots = []
    for dark in (False, True):
        outer = framed(page, tmp_path / "outer.html", width=PHONE[0], height=PHONE[1])
        load(outer, tmp_path, size=(500, PHONE[1]), dark=dark, screenshot=tmp_path / "shot.png")
        shots.append(np.asarray(Image.open(tmp_path / "shot.png").convert("RGB"))[:, : PHONE[0]].astype(int))
    light, dark = shots
    assert np.median(light) > 200
    assert np.median(dark) < 60
    for shot in shots:
        red, green, blue = shot[2, :].mean(axis=0)  # the notice's bar, at the very top
        assert red > 100
        assert max(green, blue) < 60


def test_it_prints(page, tmp_path):
    load(page, tmp_path, pdf=tmp_path / "page.pdf")
    content = (tmp_path / "page.pdf").read_bytes()
    pages = re.findall(rb"/Type /Page\b.*?/Contents (\d+) 0 R", content, re.DOTALL)
    assert 6 <= len(pages) <= 25
    for number in pages[:-1]:
        start = content.index(b"stream\n", content.index(b"\n%s 0 obj" % number)) + len(b"stream\n")
        # Lines of text, and strokes of plots: a page that is all but empty has few.
        drawn = zlib.decompressobj().decompress(content[start:])
        assert drawn.count(b"BT") + drawn.count(b" l\n") + 20 * drawn.count(b" Do") > 20
