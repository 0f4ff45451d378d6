"""Voxels -> what lies where, in blocks of 8 mm: air, head, vessels. From this alone samplers choose where to read.

Blocks are finer than chunks on purpose. A chunk of 32 mm at the edge of the head is mostly air: drawn as often as one
within, it yields patches of air; drawn by its share of head, each of its head voxels is drawn too rarely.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

EDGE_MM: Final = 8.0
SURVEY_VERSION: Final = 2
"""Of what finds them (`aneurysm.volume.survey`). Raise it when other blocks come out: patches are drawn by them."""


@dataclass(frozen=True)
class Blocks:
    """
    Which blocks of a volume hold head, and which vessels.

    ``edge`` is a block's voxels along (z, y, x); ``head`` and ``vessels`` are bool arrays of one element a block, and
    ``vessels`` lies within ``head``. ``from_mask`` tells vessels of a mask from structures that look like some.
    """

    edge: tuple[int, int, int]
    head: NDArray[np.bool_]
    vessels: NDArray[np.bool_]
    from_mask: bool

    def as_metadata(self) -> dict[str, Any]:
        """Return what stands in the volume's metadata: bits in C order, the first the highest of its byte, base64."""
        return {
            "edge": list(self.edge),
            "shape": list(self.head.shape),
            "head": _pack(self.head),
            "vessels": _pack(self.vessels),
            "vessels_from": "mask" if self.from_mask else "image",
            "survey": SURVEY_VERSION,
        }

    @classmethod
    def from_metadata(cls, content: dict[str, Any]) -> Blocks:
        """Return what `as_metadata` described; raise `ValueError` or `KeyError` if it is damaged."""
        z, y, x = (int(n) for n in content["edge"])
        shape = tuple(int(n) for n in content["shape"])
        head, vessels = _unpack(content["head"], shape), _unpack(content["vessels"], shape)
        return cls((z, y, x), head, vessels, content["vessels_from"] == "mask")


def _pack(bits: NDArray[np.bool_]) -> str:
    return base64.b64encode(np.packbits(bits.ravel()).tobytes()).decode("ascii")


def _unpack(text: str, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    data = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    size = int(np.prod(shape))
    if len(data) != -(-size // 8):
        raise ValueError(f"{len(data)} bytes for {size} blocks")
    return np.unpackbits(data, count=size).view(np.bool_).reshape(shape)
