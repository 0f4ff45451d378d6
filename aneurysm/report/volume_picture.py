"""draw_volume(): slices and slabs of a cached volume on one page, with lesions, vessels, letters and a scale."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.typing import ColorType
from numpy.typing import NDArray

from aneurysm.annotations.lesions import Lesion
from aneurysm.cache.metadata import VolumeMetadata
from aneurysm.cache.shard import ShardReader
from aneurysm.cache.volume import ZarrArray, open_volume, read_bone
from aneurysm.errors import DamagedCacheError, NoSpaceError, UsageError
from aneurysm.labels import SITES, UNKNOWN_VESSEL, VESSEL_VALUES
from aneurysm.processes.files import raise_no_space, replaced_file
from aneurysm.report.marks import (
    INK,
    LESION_COLOUR,
    LESION_DASHES,
    LESION_RADIUS_MM,
    PAPER,
    add_circle,
    add_letters,
    add_scale_bar,
    write,
)
from aneurysm.report.views import CT_PROJECTION_HU, View, ViewName, mr_projection_window, view
from aneurysm.types import Point, triple
from aneurysm.volume.blocks import DARK_VESSELS
from aneurysm.volume.highlight import highlight_window, spare_points, without_bone
from aneurysm.volume.intensity import CT_SLICE_HU, Intensity, to_physical

_VIEWS: tuple[ViewName, ...] = ("axial", "coronal", "sagittal")
PICTURE_SLAB_MM = 24.0
"""Thickness of what is projected: through a whole head, veins and what is left of the skull hide the vessels of CT."""
_MR_BRIGHT_PERCENTILE = 99.5
_NEAR_MM = 5.0  # a lesion farther from the slice that is shown is drawn dashed
_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}
# By site; tab20 comes in pairs of one hue, dark and light, as the sites do, left and right.
_TAB20 = (0, 1, 2, 3, 4, 5, 6, 8, 9, 18, 19, 12, 10)
_VESSEL_COLOURS = {value: colormaps["tab20"](i) for value, i in zip(VESSEL_VALUES, _TAB20, strict=True)}
_VESSEL_COLOURS[UNKNOWN_VESSEL] = colormaps["tab20"](7)
_VESSEL_OPACITY = 0.6


def draw_volume(volume: str | Path, picture: str | Path) -> None:
    """
    Draw a cached volume into a PNG or JPEG file.

    Above, three slices through a point; below, three projections of 24 mm about it: the maximum, of T2, whose vessels
    are dark, the minimum. Those of CT leave out what is labelled as bone, except in vessel masks and circles of
    lesions, and show the brightest of the rest in all greys (`aneurysm.volume.highlight`). The point is a lesion (of
    several the one near which most others lie), else the middle of the vessel mask, else of the head. In millimetres,
    with a bar of 20 mm, in radiological convention (the patient's right on the left of the picture). Lesions are
    numbered circles, dashed where they lie beside what is shown; vessel masks are coloured by site.

    Parameters
    ----------
    volume
        The volume's folder, ``CACHE/volumes/<hh>/<uid>.zarr``.
    picture
        The file to write, ``.png``, ``.jpg`` or ``.jpeg``; one that is there is replaced.

    Raises
    ------
    CacheNotFoundError
        There is no such volume.
    DamagedCacheError
        It is no volume of this project, or not as it was written.
    UsageError
        The picture's folder does not exist, its name has another ending, or it can't be written.
    NoSpaceError
        The disk is full; a picture that was there stays.
    """
    picture = Path(picture)
    kind = _FORMATS.get(picture.suffix.lower())
    if kind is None:
        raise UsageError(f"{picture}: pictures are written as {', '.join(_FORMATS)}; give a name that ends so")
    if not picture.parent.is_dir():
        raise UsageError(f"{picture}: there is no folder {picture.parent} to write the picture into")
    name = Path(volume).name.removesuffix(".zarr")
    try:
        figure = _draw_figure(Path(volume))
    except ValueError as error:
        raise DamagedCacheError(f"volume {name}: its blocks are damaged ({error}). Run aneurysm verify") from error
    try:
        with raise_no_space(picture.parent, "Free some space, or name another file"), replaced_file(picture) as file:
            figure.savefig(file, format=kind, facecolor=PAPER)
    except NoSpaceError:
        raise
    except OSError as error:
        raise UsageError(f"{picture} can't be written: {error.strerror or error}") from error


def _draw_figure(volume: Path) -> Figure:
    opened = open_volume(volume, bone=True)
    metadata, voxels = opened.metadata, _read_whole(opened.image)
    vessels = None if opened.vessels is None else _read_whole(opened.vessels)
    affine = metadata.affine
    views = [view(voxels, affine, name) for name in _VIEWS]
    projected, without = views, ""
    if opened.bone is not None:
        bone = read_bone(opened, (0, 0, 0), triple(voxels.shape))
        if vessels is not None:
            bone &= vessels == 0
        spare_points(bone, affine, [lesion.lps_mm for lesion in metadata.lesions], LESION_RADIUS_MM)
        soft = without_bone(voxels, bone, opened.image.fill)
        projected, without = [view(soft, affine, name) for name in _VIEWS], ", without bone"
    focus, focus_name = _focus(metadata, vessels, affine, voxels.shape)
    dark = metadata.modality == DARK_VESSELS
    # Scaled in two dimensions only: the volume itself stays in its stored integers.
    slices = [_physical(seen.slice_through(focus), metadata.intensity) for seen in views]
    slabs = [_physical(seen.slab(focus, PICTURE_SLAB_MM, minimum=dark), metadata.intensity) for seen in projected]
    windows = _windows(metadata.intensity, slices, slabs, without_skull=bool(without))

    figure = Figure(figsize=(13.5, 9.9), layout="constrained", facecolor=PAPER)
    FigureCanvasAgg(figure)  # registers itself with the figure; pyplot would keep every figure for good
    # A stack of a few slices is a line from the side: it still needs room for its title.
    widths = [v.size_mm[1] for v in views]
    widths = [max(width, max(widths) / 3) for width in widths]
    axes = figure.subplots(2, 3, gridspec_kw={"width_ratios": widths}, squeeze=False)
    for column, seen in enumerate(views):
        mask = None if vessels is None else view(vessels, affine, seen.name)
        shown = None if mask is None else (mask.slice_through(focus), mask.slab(focus, PICTURE_SLAB_MM))
        for row, (images, near_mm) in enumerate(((slices, _NEAR_MM), (slabs, PICTURE_SLAB_MM / 2))):
            _draw(axes[row, column], seen, images[column], windows[row], None if shown is None else shown[row])
            for number, lesion in enumerate(metadata.lesions, start=1):
                _mark(axes[row, column], seen, lesion.lps_mm, number, focus, near_mm)
            kind_shown = f"{'minimum' if dark else 'maximum'} of {PICTURE_SLAB_MM:g} mm{without}" if row else "slice"
            axes[row, column].set_title(f"{seen.name}, {kind_shown}", color=INK, fontsize=9, pad=18)
    unit = metadata.intensity.unit
    shown_as = ", ".join(
        f"{name} {low:.4g} to {high:.4g}" for name, (low, high) in zip(("slices", "projections"), windows, strict=True)
    )
    facts = f"about {focus_name}   black to white: {shown_as} {'HU' if unit == 'HU' else '(no unit)'}"
    figure.suptitle(f"{_title(metadata, voxels.shape)}\n{facts}", color=INK, fontsize=11)
    _add_legend(figure, metadata.lesions, vessels)
    return figure


def _read_whole(array: ShardReader | ZarrArray) -> NDArray[Any]:
    voxels = np.empty(array.shape, array.dtype)
    array.read((0, 0, 0), voxels)
    return voxels


def _focus(
    metadata: VolumeMetadata,
    vessels: NDArray[np.uint8] | None,
    affine: NDArray[np.float64],
    shape: tuple[int, ...],
) -> tuple[NDArray[np.float64], str]:
    """Return the point (LPS mm) that the picture is about, and what it is."""
    lesions = np.array([lesion.lps_mm for lesion in metadata.lesions], float).reshape(-1, 3)
    if len(lesions):
        apart = np.linalg.norm(lesions[:, None] - lesions, axis=2)
        chosen = int((apart <= PICTURE_SLAB_MM / 2).sum(axis=1).argmax())
        return lesions[chosen], f"lesion {chosen + 1}"
    if vessels is not None and vessels.any():
        middle, name = np.argwhere(vessels).mean(axis=0), "the middle of the vessels"
    else:
        middle, name = (np.array(shape) - 1) / 2, "the middle of the volume"
        if (head := metadata.head_and_vessels()).head.any():
            edges = np.argwhere(head.head)
            middle = (edges.min(axis=0) + edges.max(axis=0) + 1) / 2 * np.array(head.edge) - 0.5
            name = "the middle of the head"
    return (affine @ [*middle, 1.0])[:3], name


def _physical(stored: NDArray[Any], intensity: Intensity) -> NDArray[np.float32]:
    return to_physical(stored.astype(np.float32), intensity.scale, intensity.offset)


def _windows(
    intensity: Intensity, slices: list[NDArray[np.float32]], slabs: list[NDArray[np.float32]], *, without_skull: bool
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the window of the slices and that of the projections: one each, so that panels can be compared."""
    projected = np.concatenate([v.ravel() for v in slabs])
    if intensity.unit == "HU":
        return CT_SLICE_HU, highlight_window(projected) if without_skull else CT_PROJECTION_HU
    low, high = (float(v) for v in intensity.window)
    # The window of MR has room for the brightest vessels; where slices have none, tissue would be all but black.
    bright = np.percentile(np.concatenate([v.ravel() for v in slices]), _MR_BRIGHT_PERCENTILE)
    return (low, min(high, max(float(bright), (3 * low + high) / 4))), mr_projection_window(projected)


def _draw(
    axes: Axes,
    seen: View,
    physical: NDArray[np.float32],
    window: tuple[float, float],
    mask: NDArray[np.uint8] | None,
) -> None:
    height_mm, width_mm = seen.size_mm
    extent = (0.0, width_mm, height_mm, 0.0)
    axes.imshow(physical, cmap="gray", vmin=window[0], vmax=window[1], extent=extent, interpolation="bilinear")
    if mask is not None:
        axes.imshow(_coloured(mask), extent=extent, interpolation="nearest")
    axes.set_xlim(0, width_mm)
    axes.set_ylim(height_mm, 0)
    axes.set_axis_off()
    add_letters(axes, seen.letters)
    add_scale_bar(axes, width_mm, height_mm)


def _coloured(mask: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return a mask's values, (rows, columns), as colours, (rows, columns, 4), clear where there is no vessel."""
    colours = np.zeros((256, 4), np.float32)
    colours[1:] = to_rgba(INK, _VESSEL_OPACITY)
    for value, colour in _VESSEL_COLOURS.items():
        colours[value] = to_rgba(colour, _VESSEL_OPACITY)
    return colours[mask]


def _mark(axes: Axes, seen: View, lps_mm: Point, number: int, focus: NDArray[np.float64], near_mm: float) -> None:
    x, y = seen.in_picture_mm(lps_mm)
    # A tenth of tolerance: a slice shows the voxels about it.
    add_circle(axes, x, y, near=seen.distance_mm(lps_mm, focus) <= near_mm + 0.1)
    write(axes, x + LESION_RADIUS_MM, y - LESION_RADIUS_MM, str(number), LESION_COLOUR)


def _add_legend(figure: Figure, lesions: Sequence[Lesion], vessels: NDArray[np.uint8] | None) -> None:
    handles = [_key("o", LESION_COLOUR, f"{i} {x.location}") for i, x in enumerate(lesions, start=1)]
    if len(lesions) > 1:
        dashed = Line2D([], [], color=LESION_COLOUR, linestyle=LESION_DASHES, linewidth=1.2, alpha=0.6)
        dashed.set_label(
            f"dashed: more than {_NEAR_MM:g} mm off the slice, outside of the projected {PICTURE_SLAB_MM:g} mm"
        )
        handles.append(dashed)
    if vessels is not None:
        present = set(np.unique(vessels).tolist())
        sites = [*zip(SITES, VESSEL_VALUES, strict=True), ("Vessel of unknown site", UNKNOWN_VESSEL)]
        handles += [_key("s", _VESSEL_COLOURS[value], site) for site, value in sites if value in present]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, labelcolor=INK, frameon=False)


def _key(marker: str, colour: ColorType, label: str) -> Line2D:
    filling = "none" if marker == "o" else colour
    return Line2D([], [], marker=marker, linestyle="", color=colour, markerfacecolor=filling, label=label)


def _title(metadata: VolumeMetadata, shape: tuple[int, ...]) -> str:
    size = " x ".join(str(n) for n in shape)
    spacing = " x ".join(f"{s:.4g}" for s in metadata.spacing_mm)
    facts = (metadata.modality, f"{size} at {spacing} mm (z, y, x)", metadata.spec)
    return f"{metadata.series_uid}\n{'   '.join(facts)}"
