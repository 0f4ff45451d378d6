"""draw_volume(): six views of a cached volume on one page, with lesions, vessels and letters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.typing import ColorType
from numpy.typing import NDArray

from aneurysm.cache.layout import VESSELS
from aneurysm.errors import CacheError, CacheNotFoundError, UsageError
from aneurysm.labels import SITES, UNKNOWN_VESSEL, VESSEL_VALUES
from aneurysm.report.marks import INK, LESION_COLOUR, LESION_RADIUS_MM, PAPER, add_circle, add_letters, write
from aneurysm.report.views import View, ViewName, view

_VIEWS: tuple[ViewName, ...] = ("axial", "coronal", "sagittal")
# Slices of CT: brain, bright vessels and bone apart. Projections: what contrast and bone add above soft
# tissue.
_CT_SLICE_HU = (-100.0, 600.0)
_CT_PROJECTION_HU = (50.0, 900.0)
_MR_BRIGHT_PERCENTILE = 99.5
_NEAR_MM = 5.0  # a lesion farther from the slice that is shown is drawn dashed
# By site; tab20 comes in pairs of one hue, dark and light, as the sites do, left and right.
_TAB20 = (0, 1, 2, 3, 4, 5, 6, 8, 9, 18, 19, 12, 10)
_VESSEL_COLOURS = {value: colormaps["tab20"](i) for value, i in zip(VESSEL_VALUES, _TAB20, strict=True)}
_VESSEL_COLOURS[UNKNOWN_VESSEL] = colormaps["tab20"](7)
_VESSEL_OPACITY = 0.6


def draw_volume(volume: str | Path, png: str | Path) -> None:
    """
    Draw a cached volume into a PNG file.

    Above, the three middle slices; below, the three maximum-intensity projections; in millimetres, in
    radiological convention (the patient's right on the left of the picture). Lesions are numbered circles,
    dashed where the lesion is more than 5 mm from the slice; vessel masks are coloured by site.

    Parameters
    ----------
    volume
        The volume's folder, ``CACHE/volumes/<uid>.zarr``.
    png
        The file to write; one that is there is replaced.

    Raises
    ------
    CacheNotFoundError
        There is no such volume.
    CacheError
        It is no volume of this project.
    UsageError
        The picture's folder does not exist.
    """
    png = Path(png)
    if not png.parent.is_dir():
        raise UsageError(f"{png}: there is no folder {png.parent} to write the picture into")
    voxels, vessels, attributes = _read(Path(volume))
    figure = Figure(figsize=(13.5, 9.5), layout="constrained", facecolor=PAPER)
    FigureCanvasAgg(figure)  # registers itself with the figure; pyplot would keep every figure for good
    views = [view(voxels, attributes["affine_lps"], name) for name in _VIEWS]
    widths = [v.size_mm[1] for v in views]
    # A stack of a few slices is a line from the side: it still needs room for its title.
    widths = [max(width, max(widths) / 3) for width in widths]
    axes = figure.subplots(2, 3, gridspec_kw={"width_ratios": widths}, squeeze=False)
    for column, seen in enumerate(views):
        mask = None if vessels is None else view(vessels, attributes["affine_lps"], seen.name)
        for row, projected in enumerate((False, True)):
            _draw(axes[row, column], seen, mask, attributes, projected=projected)
    figure.suptitle(_title(attributes, voxels.shape), color=INK, fontsize=11)
    _add_legend(figure, attributes.get("lesions") or [], vessels)
    figure.savefig(png, format="png", facecolor=PAPER)


def _read(path: Path) -> tuple[NDArray[Any], NDArray[np.uint8] | None, dict[str, Any]]:
    if not path.is_dir():
        raise CacheNotFoundError(f"{path}: no such volume")
    try:
        group = zarr.open_group(str(path), mode="r")
        attributes = group.attrs["aneurysm"]
        voxels = np.asarray(group["0"][...])  # type: ignore[index]
        masked = VESSELS in group
        vessels = np.asarray(group[VESSELS][...]) if masked else None  # type: ignore[index]
    except (KeyError, ValueError, OSError) as error:
        raise CacheError(f"{path}: not a volume that `aneurysm precache` wrote ({error})") from error
    if not isinstance(attributes, dict):
        raise CacheError(f"{path}: the attribute `aneurysm` is a {type(attributes).__name__}, not a table")
    return voxels, vessels, attributes


def _draw(axes: Axes, seen: View, mask: View | None, attributes: dict[str, Any], *, projected: bool) -> None:
    height_mm, width_mm = seen.size_mm
    extent = (0.0, width_mm, height_mm, 0.0)
    intensity = attributes["intensity"]
    stored = seen.maximum() if projected else seen.middle()
    # Scaled in two dimensions only: the volume itself stays in its stored integers.
    physical = stored.astype(np.float32) * intensity["scale"] + intensity["offset"]
    low, high = _window(intensity, physical, projected=projected)
    axes.imshow(physical, cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="bilinear")
    if mask is not None:
        overlay = _coloured(mask.maximum() if projected else mask.middle())
        axes.imshow(overlay, extent=extent, interpolation="nearest")
    for number, lesion in enumerate(attributes.get("lesions") or [], start=1):
        _mark(axes, seen, lesion["lps_mm"], number, projected=projected)
    axes.set_xlim(0, width_mm)
    axes.set_ylim(height_mm, 0)
    axes.set_axis_off()
    kind = "projection" if projected else "middle slice"
    unit = f" {intensity['unit']}" if intensity["unit"] == "HU" else ""
    axes.set_title(f"{seen.name}, {kind}, {low:.0f} to {high:.0f}{unit}", color=INK, fontsize=9, pad=18)
    add_letters(axes, seen.letters)


def _window(intensity: dict[str, Any], physical: NDArray[np.float32], *, projected: bool) -> tuple[float, float]:
    if intensity["unit"] == "HU":
        return _CT_PROJECTION_HU if projected else _CT_SLICE_HU
    low, high = (float(v) for v in intensity["window"])
    if not projected:
        # The window of MR has room for the brightest vessels; where a slice has none, tissue would be all but black.
        high = min(high, max(float(np.percentile(physical, _MR_BRIGHT_PERCENTILE)), (low + high) / 4))
    return low, high


def _coloured(mask: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return a mask's values, (rows, columns), as colours, (rows, columns, 4), clear where there is no vessel."""
    colours = np.zeros((256, 4), np.float32)
    colours[1:] = to_rgba(INK, _VESSEL_OPACITY)
    for value, colour in _VESSEL_COLOURS.items():
        colours[value] = to_rgba(colour, _VESSEL_OPACITY)
    return colours[mask]


def _mark(axes: Axes, seen: View, lps_mm: list[float], number: int, *, projected: bool) -> None:
    depth, row, column = seen.place(lps_mm)
    depth_mm, row_mm, column_mm = seen.spacing_mm
    # Pixel centres lie half a voxel inside the extent that imshow was given.
    x, y = (column + 0.5) * column_mm, (row + 0.5) * row_mm
    near = projected or abs(depth - seen.middle_depth) * depth_mm <= _NEAR_MM
    add_circle(axes, x, y, near=near)
    write(axes, x + LESION_RADIUS_MM, y - LESION_RADIUS_MM, str(number), LESION_COLOUR)


def _add_legend(figure: Figure, lesions: list[dict[str, Any]], vessels: NDArray[np.uint8] | None) -> None:
    handles = [_key("o", LESION_COLOUR, f"{i} {x['location']}") for i, x in enumerate(lesions, start=1)]
    if vessels is not None:
        present = set(np.unique(vessels).tolist())
        sites = [*zip(SITES, VESSEL_VALUES, strict=True), ("Vessel of unknown site", UNKNOWN_VESSEL)]
        handles += [_key("s", _VESSEL_COLOURS[value], site) for site, value in sites if value in present]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, labelcolor=INK, frameon=False)


def _key(marker: str, colour: ColorType, label: str) -> Line2D:
    filling = "none" if marker == "o" else colour
    return Line2D([], [], marker=marker, linestyle="", color=colour, markerfacecolor=filling, label=label)


def _title(attributes: dict[str, Any], shape: tuple[int, ...]) -> str:
    spacing_mm = np.linalg.norm(np.asarray(attributes["affine_lps"], float)[:3, :3], axis=0)
    size = " x ".join(str(n) for n in shape)
    spacing = " x ".join(f"{s:.4g}" for s in spacing_mm)
    facts = (attributes["modality"], f"{size} at {spacing} mm (z, y, x)", attributes["spec"])
    return f"{attributes['series_uid']}\n{'   '.join(facts)}"
