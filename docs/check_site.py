"""`python docs/check_site.py SITE`: whether every link of the built pages leads to a page, a file, an anchor."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """The anchors of a page, and where its links lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        """Note what an element is called, and what it refers to."""
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value is not None:
                self.links.append(value)


def dead_links(site: Path) -> tuple[int, list[str]]:
    """Return how many links within the site there are, and those that lead nowhere."""
    pages = {path: _Page(path.read_text("utf-8")) for path in sorted(site.rglob("*.html"))}
    checked, dead = 0, []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            checked += 1
            base = site if parts.path.startswith("/") else path.parent
            target = (base / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            anchor = unquote(parts.fragment)
            missing = not target.is_file() or (anchor and target in pages and anchor not in pages[target].anchors)
            if missing:
                dead.append(f"{path.relative_to(site)}: {link}")
    return checked, dead


def main() -> None:
    """Check the site that the command line names."""
    checked, dead = dead_links(Path(sys.argv[1]).resolve())
    if not checked:
        sys.exit(f"there are no links in {sys.argv[1]}")
    if dead:
        sys.exit("\n".join([*dead, f"{len(dead)} of {checked} links lead nowhere"]))


if __name__ == "__main__":
    main()
