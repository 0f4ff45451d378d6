"""ViewConfig: which view, in mm; with a cache's spacing it becomes a `View`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from aneurysm.documents import format_problem
from aneurysm.errors import UsageError
from aneurysm.patches.intensity import MrRange
from aneurysm.patches.views.mip import Mip
from aneurysm.patches.views.slices import Pick, Slices, Stack
from aneurysm.patches.views.view import PLANES, Box, Plane, Reduction, View
from aneurysm.types import Triple, triple

_Mm = Annotated[float, Field(ge=0.1, le=1000.0)]
_Size = Annotated[float, Field(ge=8.0, le=1000.0)]
_Spacing = tuple[float, float, float]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Patch3dConfig(_Section):
    """A box, whose voxels are those of ``patch``."""

    name: Literal["patch3d"] = "patch3d"

    def build(self, _spacing_mm: _Spacing, patch: Triple | None = None) -> View:
        """Return the view; ``patch`` are its voxels."""
        assert patch is not None
        return Box(patch)


class SlabConfig(_Section):
    """A box that is thin along the axis across ``plane``, and ``size_mm`` along the others: 300 holds any head."""

    name: Literal["slab"] = "slab"
    plane: Plane = "axial"
    thickness_mm: _Mm = 16.0
    size_mm: _Size = 192.0

    def build(self, spacing_mm: _Spacing, _patch: Triple | None = None) -> View:
        """Return the view on a grid of ``spacing_mm``."""
        mm = [self.thickness_mm if a == PLANES[self.plane] else self.size_mm for a in range(3)]
        return Box(triple(max(1, round(n / s)) for n, s in zip(mm, spacing_mm, strict=True)))


class SlicesConfig(_Section):
    """
    Slices across one plane; see `aneurysm.patches.views.slices.Slices`.

    ``mr_range`` says of what MR's model units are: of the series' percentiles, as the cache has them, or of the 1st and
    99.5th of each picture.
    """

    name: Literal["slices"] = "slices"
    plane: Plane = "axial"
    count: Annotated[int, Field(ge=1, le=256)] = 3
    pick: Pick = "even"
    apart_mm: _Mm = 8.0
    neighbours: Annotated[int, Field(ge=0, le=8)] = 0
    stack: Stack = "channels"
    size_mm: _Size = 224.0
    mr_range: MrRange = "series"

    def build(self, spacing_mm: _Spacing, _patch: Triple | None = None) -> View:
        """Return the view on a grid of ``spacing_mm``."""
        axis = PLANES[self.plane]
        return Slices(
            axis=axis,
            count=self.count,
            pick=self.pick,
            apart=max(1, round(self.apart_mm / spacing_mm[axis])),
            neighbours=self.neighbours,
            stack=self.stack,
            size=_voxels(self.size_mm, spacing_mm),
            spacing_mm=spacing_mm,
        )


class MipConfig(_Section):
    """Projections; see `aneurysm.patches.views.mip.Mip`. No ``slab_mm`` projects the whole head at once."""

    name: Literal["mip"] = "mip"
    planes: Annotated[tuple[Plane, ...], Field(min_length=1, max_length=3)] = ("axial", "coronal", "sagittal")
    slab_mm: _Mm | None = None
    how: Annotated[tuple[Reduction, ...], Field(min_length=1, max_length=4)] = ("max",)
    stack: Stack = "bag"
    size_mm: _Size = 224.0
    mr_range: MrRange = "series"

    def build(self, spacing_mm: _Spacing, _patch: Triple | None = None) -> View:
        """Return the view on a grid of ``spacing_mm``. Raises `UsageError` if its pictures can't be stacked."""
        return Mip(
            axes=tuple(PLANES[plane] for plane in dict.fromkeys(self.planes)),
            slab=None if self.slab_mm is None else _voxels(self.slab_mm, spacing_mm),
            how=tuple(dict.fromkeys(self.how)),
            stack=self.stack,
            size=_voxels(self.size_mm, spacing_mm),
        )


VIEWS: Final = (Patch3dConfig, SlabConfig, SlicesConfig, MipConfig)
ViewConfig = Annotated[Patch3dConfig | SlabConfig | SlicesConfig | MipConfig, Field(discriminator="name")]
"""The section ``[view]`` of a configuration; ``name`` says which."""


def parse_view(settings: Mapping[str, Any], spacing_mm: _Spacing) -> View:
    """
    Return the view of a section ``[view]`` on a grid of ``spacing_mm``.

    Raises
    ------
    UsageError
        There is no such view or setting, or its pictures can't be stacked; or it is patch3d, which has no size here.
    """
    try:
        config: ViewConfig = TypeAdapter(ViewConfig).validate_python(dict(settings))
    except ValidationError as error:
        raise UsageError(f"view: {format_problem(dict(error.errors()[0]))}") from error
    if isinstance(config, Patch3dConfig):
        raise UsageError("view: patch3d has the size of patch=(z, y, x): give that in place of a view")
    return config.build(spacing_mm)


def _voxels(mm: float, spacing_mm: _Spacing) -> Triple:
    return triple(max(1, round(mm / s)) for s in spacing_mm)
