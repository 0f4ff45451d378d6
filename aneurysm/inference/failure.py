"""Failure: why a series has no prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aneurysm.errors import FAILURES, Reason


@dataclass(frozen=True)
class Failure:
    """
    A series that could not be read: ``rejected`` for what it is, or ``failed`` for what happened here.

    Attributes
    ----------
    probabilities
        By label: base rates to fall back on, if those were asked for; see `aneurysm.inference.base_rates`.
    """

    series_uid: str
    status: Literal["rejected", "failed"]
    reason: Reason
    detail: str
    probabilities: dict[str, float] | None = None


def failure(series_uid: str, reason: Reason, detail: str) -> Failure:
    """Return a `Failure` with the status that follows from its reason."""
    return Failure(series_uid, "failed" if reason in FAILURES else "rejected", reason, detail)
