"""Headless Chromium: pages loaded offline, what they say on the console, and screenshots."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)

LAPTOP, PHONE = (1366, 768), (390, 844)


@dataclass(frozen=True)
class Page:
    """What a loaded page left: its document after scripts have run, and the lines on its console."""

    document: str
    console: list[str]


def load(page: Path, work: Path, *, size=LAPTOP, dark=False, screenshot: Path | None = None, pdf: Path | None = None):
    """Load a page from disk; a proxy that is not there keeps it off the network."""
    profile = work / "profile"
    shutil.rmtree(profile, ignore_errors=True)
    arguments = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
        "--proxy-server=http://127.0.0.1:9", f"--user-data-dir={profile}", "--virtual-time-budget=5000",
        "--enable-logging=stderr", f"--window-size={size[0]},{size[1]}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
    ]  # fmt: skip
    if screenshot is not None:
        arguments.append(f"--screenshot={screenshot}")
    elif pdf is not None:
        arguments += [f"--print-to-pdf={pdf}", "--no-pdf-header-footer"]
    else:
        arguments.append("--dump-dom")
    ran = subprocess.run([*arguments, page.resolve().as_uri()], capture_output=True, text=True, timeout=90, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return Page(ran.stdout, [line for line in ran.stderr.splitlines() if re.search(r"\bCONSOLE\b", line)])


def measured(page: Path, work: Path, *, width: int) -> tuple[int, int]:
    """Width and height that the page's content takes in a window so wide: more than ``width`` scrolls sideways."""
    inner = page.read_text("utf-8")
    # The page's own policy forbids all scripts.
    inner = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", inner)
    says = "const d = document.documentElement; parent.postMessage([d.scrollWidth, d.scrollHeight].join(' '), '*')"
    (work / "inner.html").write_text(inner.replace("</body>", f"<script>{says}</script></body>"), "utf-8")
    outer = framed(work / "inner.html", work / "outer.html", width=width, height=800)
    hears = "<script>onmessage = m => document.body.setAttribute('data-size', m.data)</script>"
    outer.write_text(outer.read_text().replace("<iframe", hears + "<iframe"))
    found = re.search(r'data-size="(\d+) (\d+)"', load(outer, work, size=(max(width, 600), 800)).document)
    assert found, "the page did not say its size"
    return int(found[1]), int(found[2])


def framed(page: Path, to: Path, *, width: int, height: int) -> Path:
    """A page that shows another in a frame: Chromium's windows are at least 500 wide, phones are not."""
    frame = f'<iframe src="{page.resolve().as_uri()}" width="{width}" height="{height}" style="border: 0"></iframe>'
    to.write_text(f'<!DOCTYPE html><body style="margin: 0">{frame}</body>', "utf-8")
    return to
