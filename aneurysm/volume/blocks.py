"""Voxels -> what lies where, in blocks of 8 mm: air, head, vessels. From this alone samplers choose where to read.

Blocks are finer than chunks on purpose. A chunk of 32 mm at the edge of the head is mostly air: drawn as often as one
within, it yields patches of air; drawn by its share of head, each of its head voxels is drawn too rarely.

What the voxels alone say is a `Survey`, found once, when a volume is built. Which blocks count as vessels also depends
on annotations, which change later: a vessel mask, or the modality that train.csv names. `Survey.blocks` puts both
together.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from aneurysm.types import Triple, triple

EDGE_MM: Final = 8.0
SURVEY_VERSION: Final = 2
"""Of `aneurysm.volume.head_and_vessels`. Raise it when other blocks come out: patches are drawn by them."""
DARK_VESSELS: Final = "MRI T2"
"""The modality in which flowing blood is dark: the least signal of a slab shows vessels, and the most hides them."""

Bits = NDArray[np.bool_]


@dataclass(frozen=True)
class HeadBlocks:
    """Which blocks of a volume hold head: a bool array of one element a block of ``edge`` voxels along (z, y, x)."""

    edge: tuple[int, int, int]
    head: Bits

    def head_box(self, shape: Triple) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first voxel of the box about the head, and the one after its last; without one of ``shape``."""
        blocks = np.argwhere(self.head)
        if not len(blocks):
            return np.zeros(3, np.int64), np.array(shape)
        edge = np.array(self.edge)
        return blocks.min(0) * edge, np.minimum((blocks.max(0) + 1) * edge, shape)


@dataclass(frozen=True)
class Blocks(HeadBlocks):
    """
    Which blocks of a volume hold head, and which vessels.

    ``vessels`` is a bool array as ``head`` is, and lies within it. ``from_mask`` tells vessels of a mask from
    structures that look like some.
    """

    vessels: Bits
    from_mask: bool


class PackedSurvey(BaseModel):
    """
    A `Survey` as it stands in a volume's metadata: bits in C order, the first the highest of its byte, as base64.

    ``survey`` is the `SURVEY_VERSION` that found it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    edge: Triple
    shape: Triple
    head: str
    bright: str
    survey: int
    dark: str | None = None

    @model_serializer(mode="wrap")
    def _without_absent(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = serialize(self)
        return {k: v for k, v in content.items() if v is not None}


@dataclass(frozen=True)
class Survey(HeadBlocks):
    """
    Which blocks of a volume hold head, and thin structures that look like vessels, by its voxels alone.

    ``bright`` and ``dark`` are what stands out from its surroundings in either direction; of CT, in which vessels are
    never dark, ``dark`` is None. All are bool arrays of one element a block of ``edge`` voxels along (z, y, x).
    """

    bright: Bits
    dark: Bits | None = None

    def blocks(self, modality: str, mask: Bits | None = None) -> Blocks:
        """Return the blocks of a volume of ``modality`` (train.csv's name), with those of its vessel mask, if any."""
        if mask is not None:
            # Vessels count wherever the mask has them, also where the head was not found.
            return Blocks(self.edge, self.head | mask, mask, from_mask=True)
        dark = modality == DARK_VESSELS and self.dark is not None
        return Blocks(self.edge, self.head, self.dark if dark and self.dark is not None else self.bright, False)

    def pack(self) -> PackedSurvey:
        """Return what stands in the volume's metadata."""
        dark = None if self.dark is None else pack_bits(self.dark)
        return PackedSurvey(
            edge=self.edge,
            shape=triple(self.head.shape),
            head=pack_bits(self.head),
            bright=pack_bits(self.bright),
            survey=SURVEY_VERSION,
            dark=dark,
        )

    @classmethod
    def unpack(cls, packed: PackedSurvey) -> Survey:
        """Return what `pack` packed; raise `ValueError` if it is damaged."""
        dark = None if packed.dark is None else unpack_bits(packed.dark, packed.shape)
        return cls(packed.edge, unpack_bits(packed.head, packed.shape), unpack_bits(packed.bright, packed.shape), dark)


def mask_blocks(mask: NDArray[np.uint8], edge: tuple[int, int, int]) -> Bits:
    """Return which blocks of ``edge`` voxels hold a vessel of ``mask`` (z, y, x)."""
    counts = [-(-n // e) for n, e in zip(mask.shape, edge, strict=True)]
    padded = np.pad(mask > 0, [(0, c * e - n) for c, e, n in zip(counts, edge, mask.shape, strict=True)])
    z, y, x = edge
    return np.asarray(padded.reshape(counts[0], z, counts[1], y, counts[2], x).any(axis=(1, 3, 5)))


def pack_bits(bits: Bits) -> str:
    """Return bits in C order, the first the highest of its byte, as base64."""
    return base64.b64encode(np.packbits(bits.ravel()).tobytes()).decode("ascii")


def unpack_bits(text: str, shape: tuple[int, ...]) -> Bits:
    """Return what `pack_bits` packed; raise `ValueError` if there are more or fewer."""
    data = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    size = int(np.prod(shape))
    if len(data) != -(-size // 8):
        raise ValueError(f"{len(data)} bytes for {size} blocks")
    return np.unpackbits(data, count=size).view(np.bool_).reshape(shape)
