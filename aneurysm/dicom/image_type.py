"""ImageType -> whether a frame is a slice at all: localizers, projections and reformats are left out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from aneurysm.dicom.frame import Decision, Frame
from aneurysm.errors import Reason, SeriesRejectedError

LOCALIZERS: Final = frozenset({"LOCALIZER", "SCOUT", "SCANOGRAM", "TOPOGRAM", "SURVIEW"})
PROJECTIONS: Final = frozenset(
    {"PROJECTION", "COLLAPSE", "MIP", "MAXIP", "MINIP", "MNIP", "MEANIP", "VRT", "SSD", "RENDER", "RENDERED"}
)
"""One image of a whole slab or volume, also where it has a place among the slices."""
REFORMATS: Final = frozenset({"MPR", "CPR", "REFORMATTED", "RESAMPLED", "AVERAGE", "AVERAGED"})
"""Made of the slices; a whole series of them is a volume like any other."""
_JOINED: Final = {"MAX_IP": "MAXIP", "MIN_IP": "MINIP", "MEAN_IP": "MEANIP"}


def without_projections(frames: Sequence[Frame], min_slices: int) -> tuple[list[Frame], list[Frame], list[Decision]]:
    """
    Return the slices among ``frames``, the images that are none by their ImageType, and what was decided.

    Only minorities are left out: a series of nothing but reformats, or of projections of thin slabs, is a volume of
    what it is, and of projections the decision says so.

    Raises
    ------
    SeriesRejectedError
        There are localizers, and fewer than ``min_slices`` other frames.
    """
    remaining = list(frames)
    dropped: list[Frame] = []
    decisions: list[Decision] = []
    for names in (LOCALIZERS, PROJECTIONS, REFORMATS):
        alike = [f for f in remaining if _words(f) & names]
        others = [f for f in remaining if not _words(f) & names]
        if not alike:
            continue
        if names is LOCALIZERS and len(others) < min_slices:
            if len(others) < len(alike):
                raise SeriesRejectedError(
                    Reason.ONLY_LOCALIZERS, f"{len(alike)} of {len(remaining)} frames are localizers by their ImageType"
                )
        elif names is not LOCALIZERS and len(alike) >= len(others):
            if names is PROJECTIONS:
                detail = f"{len(alike)} of {len(remaining)} frames are projections of slabs: {_named(alike, names)}"
                decisions.append(Decision("projection_volume", detail))
            continue
        remaining = others
        dropped += alike
        detail = f"{len(alike)} of {len(frames)} frames are no slices by their ImageType: {_named(alike, names)}"
        decisions.append(Decision("projections_dropped", detail))
    return remaining, dropped, decisions


def _words(frame: Frame) -> frozenset[str]:
    """Return the words of all values of ImageType: makers write ``PROJECTION IMAGE``, ``CSA MPR``, ``MIP_TRA``."""
    text = str(dict(frame.distinguishing_tags).get("ImageType", "")).upper()
    for written, word in _JOINED.items():
        text = text.replace(written, word)
    return frozenset(re.split(r"[^A-Z]+", text))


def _named(frames: Sequence[Frame], names: frozenset[str]) -> str:
    return ", ".join(sorted(set().union(*(_words(f) & names for f in frames))))
