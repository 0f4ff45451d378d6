"""MkDocs hooks: pages of the site that are not files in docs/, and links that lead to them.

The README is the site's first page; CONTRIBUTING.md and others at the root are pages, too. The API reference has an
entry for every name in `aneurysm.__all__`. Links are written as they work in the repository. On the site, one to a page
leads to that page; one to a source file, of which the site has no copy, becomes its text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any, Final

from mkdocs.structure.files import File, Files

import aneurysm

_ROOT: Final = Path(__file__).parent.parent
_PAGES: Final = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/RESULTS.md": "results.md",
}
"""Files outside docs/, and what they are called on the site."""
_API: Final = """# API reference

What stands here is public; every other name is internal, and may move with any release.

"""
_LINK: Final = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages that have no file in docs/."""
    for source, page in _PAGES.items():
        files.append(File.generated(config, page, content=(_ROOT / source).read_text("utf-8")))
    names = [name for name in aneurysm.__all__ if not name.startswith("_")]
    reference = "\n\n".join(f"::: aneurysm.{name}" for name in names)
    files.append(File.generated(config, "api.md", content=_API + reference + "\n"))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:  # noqa: ARG001
    """Make the repository's links those of the site."""
    sources = {name: source for source, name in _PAGES.items()}
    folder = posixpath.dirname(sources.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def on_site(link: re.Match[str]) -> str:
        image, text, target, anchor = link[1], link[2], link[3], link[4] or ""
        if not target or ":" in target:
            return link[0]
        source = posixpath.normpath(posixpath.join(folder, target))
        if not (_ROOT / source).exists():
            return link[0]  # the strict build refuses it
        name = _PAGES.get(source, source.removeprefix("docs/"))
        if files.get_file_from_path(name) is None:
            return text
        return f"{image}[{text}]({name}{anchor})"

    return _LINK.sub(on_site, markdown)
