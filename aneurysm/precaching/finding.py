"""Finding: what one check of `aneurysm doctor` found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """How a check came out. What could not be known is no ``OK``, and what keeps a run from working is an ``ERROR``."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Finding:
    """What one check found; ``advice`` is empty where there is nothing to do."""

    check: str
    state: State
    found: str
    advice: str = ""
