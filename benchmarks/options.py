"""What most benchmarks are asked: where to work, and whether to write down what was found."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path


def add_usual_options(parser: argparse.ArgumentParser, size: str = "3 GB") -> None:
    """Add ``--work``, a folder that comes to hold about ``size``, and ``--write``."""
    parser.add_argument("--work", type=Path, help=f"where data and caches are kept (about {size})")
    parser.add_argument("--write", action="store_true", help="put the section into benchmarks/RESULTS.md")


def work_folder(options: argparse.Namespace) -> Path:
    """Return the folder to work in, the same for all benchmarks if none was given, so that data are made once."""
    return (options.work or Path(tempfile.gettempdir()) / "aneurysm-benchmark").absolute()
