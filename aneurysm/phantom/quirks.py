"""
What can be peculiar about a series, and what `precache` must make of it.

The names stand in truth.csv. A plain series (no quirk) is axial, upright and even, has one file a slice, and every
aneurysm is marked on it. Quirks that hold the same ``place`` exclude each other; all others may come together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aneurysm.errors import Reason, UsageError

ANY = ("CTA", "MRA", "MRI T2", "MRI T1post")
CT = ("CTA",)
MR = ("MRA", "MRI T2", "MRI T1post")


@dataclass(frozen=True)
class Quirk:
    """
    One peculiarity.

    Attributes
    ----------
    name, about
        As in truth.csv, and what it means.
    share
        Which part of the series of a large data set has it. The faults are commoner here than in the wild, since they
        are what a data set is made to show.
    modalities
        Where it occurs.
    places
        What it occupies: two quirks of one series have no place in common.
    rejects
        The reason for which `precache` must refuse the series, None if it must cache it.
    marks
        It concerns how an aneurysm is marked: the series needs one.
    needs_files
        It concerns the files of a series, so it can't be in one multi-frame file.
    """

    name: str
    about: str
    share: float
    modalities: tuple[str, ...] = ANY
    places: tuple[str, ...] = ()
    rejects: Reason | None = None
    marks: bool = False
    needs_files: bool = False


def _bad(name: str, reason: Reason, about: str, *places: str, modalities: tuple[str, ...] = ANY) -> Quirk:
    # A series is refused for one reason, so that the truth can name it.
    return Quirk(name, about, 0.008, modalities, ("refusal", "slices", *places), reason, needs_files=True)


_ALL = (
    # Planes and geometry.
    Quirk("sagittal", "sagittal slices", 0.03, places=("plane",)),
    Quirk("coronal", "coronal slices", 0.03, places=("plane",)),
    Quirk("oblique", "the stack is turned by 8 to 25 degrees", 0.08, MR),
    Quirk("tilt", "gantry tilt: the slices are sheared", 0.05, CT, ("plane",)),
    Quirk("descending", "slices run against their normal", 0.25),
    Quirk("neck", "reaches far below the skull", 0.04, CT, ("plane", "extent")),
    Quirk("wide_matrix", "twice as many pixels a side", 0.015, ANY, ("matrix",)),
    Quirk("non_square", "fewer rows than columns, or fewer columns", 0.08, ANY, ("matrix",)),
    Quirk("unequal_pixels", "rows lie further apart than columns", 0.02, ANY, ("matrix",)),
    # Slices.
    Quirk("jittered_gaps", "slice distances vary by up to 20 %", 0.02, places=("slices",)),
    Quirk("doubled_gaps", "the upper third has every other slice only", 0.02, places=("slices",)),
    Quirk("missing_slices", "one or two slices are missing", 0.025, places=("slices",)),
    Quirk(
        "stray_slices",
        "a few slices lie apart from the stack, beyond the gap limit",
        0.012,
        places=("slices", "strays"),
    ),
    Quirk("duplicates", "some slices are stored twice", 0.02, places=("slices",), needs_files=True),
    Quirk("two_slices", "two slices only", 0.012, places=("slices", "extent"), needs_files=True),
    # Other images in the folder.
    Quirk("scouts", "scouts of another plane and matrix", 0.02, places=("minority",), needs_files=True),
    Quirk("small_slices", "a few slices with a smaller matrix", 0.012, places=("minority",), needs_files=True),
    Quirk("colour_slice", "a screen shot in RGB", 0.012, places=("minority",), needs_files=True),
    Quirk("stray_files", "text, a report and a file of another series", 0.02, needs_files=True),
    # Several volumes in one series.
    Quirk("echoes", "two echoes; the first is kept", 0.012, MR, ("slices", "volumes"), needs_files=True),
    Quirk("phases", "two time points; the first is kept", 0.012, ANY, ("slices", "volumes"), needs_files=True),
    Quirk("magnitude_phase", "magnitude and phase images", 0.01, MR, ("slices", "volumes"), needs_files=True),
    Quirk("dual_energy", "two tube voltages; the lower is kept", 0.01, CT, ("slices", "volumes"), needs_files=True),
    Quirk(
        "time_blocks",
        "two volumes that only InstanceNumber tells apart",
        0.01,
        ANY,
        ("slices", "volumes", "numbers"),
        needs_files=True,
    ),
    # Headers.
    Quirk("lying_spacing", "SpacingBetweenSlices says 18 mm", 0.03, places=("spacing_tag",)),
    Quirk("test_tags", "the 25 tags of the test set only", 0.04, places=("tags", "volumes"), needs_files=True),
    Quirk("no_numbers", "no InstanceNumber", 0.015, places=("numbers",), needs_files=True),
    Quirk("scrambled_numbers", "InstanceNumber in no order", 0.02, places=("numbers",), needs_files=True),
    Quirk("no_preamble", "files without preamble and meta group", 0.01, places=("syntax",), needs_files=True),
    # Multi-frame files.
    Quirk("multiframe", "one enhanced multi-frame file", 0.09, MR, ("files",)),
    Quirk("shuffled_frames", "one enhanced file, frames in no order", 0.015, MR, ("files", "slices")),
    Quirk(
        "stripped_multiframe",
        "one multi-frame file without any geometry",
        0.02,
        MR,
        ("files", "tags", "slices", "matrix", "spacing_tag", "plane", "assumed"),
    ),
    Quirk(
        "default_geometry",
        "one enhanced file whose frames all have the same position",
        0.01,
        MR,
        ("files", "slices", "spacing_tag", "assumed"),
    ),
    # Pixels.
    Quirk("padding", "stored values of -2000 outside of the field of view", 0.12, CT, ("ct_values",)),
    Quirk("already_hu", "a rescale intercept, although the pixels are HU", 0.02, CT, ("ct_values",)),
    Quirk("slice_rescale", "another RescaleSlope for each slice", 0.04, MR),
    Quirk("monochrome1", "stored inverted", 0.02, ANY, ("ct_values",)),
    Quirk("unreadable_few", "one slice in thirty is cut short, or garbled", 0.012, ANY, ("slices",), needs_files=True),
    # Transfer syntaxes.
    Quirk("implicit", "implicit VR little endian", 0.1, places=("syntax",)),
    Quirk("big_endian", "explicit VR big endian", 0.02, places=("syntax",)),
    Quirk("deflated", "deflated explicit VR little endian", 0.02, places=("syntax",)),
    Quirk("rle", "RLE lossless", 0.05, places=("syntax",)),
    Quirk("jpeg_lossless", "JPEG lossless, first-order prediction", 0.08, places=("syntax",)),
    Quirk("jpeg_ls", "JPEG-LS lossless", 0.05, places=("syntax",)),
    Quirk("jpeg2000", "JPEG 2000 lossless", 0.06, places=("syntax",)),
    # Annotations.
    Quirk("no_localizer", "an aneurysm that is not marked", 0.02, places=("marks",), marks=True),
    Quirk("unknown_image", "the mark names an image that is not there", 0.012, places=("marks",), marks=True),
    Quirk("same_point", "one point marked under two sites", 0.012, places=("marks",), marks=True),
    Quirk(
        "marked_duplicate",
        "the mark is on the copy of a slice stored twice",
        0.012,
        places=("slices", "marks"),
        marks=True,
        needs_files=True,
    ),
    Quirk("mask", "a vessel mask, in segmentations/", 0.06, ("CTA", "MRA"), ("mask", "assumed", "strays")),
    Quirk("nested_mask", "a vessel mask, in segmentations/<uid>/", 0.04, ("CTA", "MRA"), ("mask", "assumed", "strays")),
    Quirk(
        "regridded_mask",
        "a vessel mask of another shape than the series",
        0.02,
        ("CTA", "MRA"),
        ("mask", "assumed", "strays"),
    ),
    # What must be refused.
    _bad("no_files", Reason.NO_FILES, "an empty folder", "files"),
    _bad("no_images", Reason.NO_IMAGES, "text and a report, but no image", "files"),
    _bad("one_slice", Reason.TOO_FEW_SLICES, "a single slice", "minority"),
    _bad("one_position", Reason.ONE_POSITION, "all slices at one position", "volumes", "numbers"),
    _bad("large_gap", Reason.GAP_TOO_LARGE, "a gap beyond the limit in the middle"),
    _bad("no_majority", Reason.NO_MAJORITY, "half of the slices have another matrix", "minority"),
    _bad("drifting", Reason.NOT_ALIGNED, "slices lie centimetres beside each other", "plane"),
    _bad("steep_tilt", Reason.TILT_TOO_LARGE, "a tilt of 50 degrees", "plane", modalities=CT),
    _bad("no_geometry", Reason.NO_GEOMETRY, "no position and no orientation"),
    _bad("zero_spacing", Reason.IMPLAUSIBLE_GEOMETRY, "PixelSpacing is 0"),
    _bad("mixed_volumes", Reason.SEVERAL_VOLUMES, "two volumes that nothing tells apart", "volumes", "numbers"),
    _bad("mosaic", Reason.MOSAIC, "Siemens mosaics", "tags", modalities=MR),
    _bad("colour", Reason.COLOUR, "all slices in RGB", "syntax", "minority", "ct_values"),
    _bad("unreadable_many", Reason.UNREADABLE_PIXELS, "a third of the slices is cut short, or garbled"),
    _bad("other_modality", Reason.UNSUPPORTED_MODALITY, "the DICOM says PT"),
    _bad("no_signal", Reason.NO_SIGNAL, "all pixels are 0", "minority", modalities=MR),
)

QUIRKS: dict[str, Quirk] = {q.name: q for q in _ALL}
"""By name, in the order of the documentation."""


def conflict(names: Iterable[str], modality: str, *, marked: bool) -> str:
    """Say why the quirks can't be in one series of a modality, "" if they can; ``marked``: it has an aneurysm."""
    taken: dict[str, str] = {}
    chosen = [QUIRKS[n] for n in names]
    one_file = next((q.name for q in chosen if "files" in q.places and q.modalities == MR), None)
    for quirk in chosen:
        if modality not in quirk.modalities:
            return f"{quirk.name} does not occur in {modality}"
        if quirk.marks and not marked:
            return f"{quirk.name} needs an aneurysm"
        if quirk.needs_files and one_file is not None:
            return f"{quirk.name} needs single-frame files, {one_file} is one file"
        for place in quirk.places:
            if place in taken:
                return f"{quirk.name} and {taken[place]} exclude each other"
            taken[place] = quirk.name
    return ""


def check_quirks(names: Iterable[str], modality: str, *, marked: bool) -> None:
    """
    Raise for quirks that there are not, or that can't come together.

    Raises
    ------
    UsageError
        With the names at fault.
    """
    names = list(names)
    if unknown := sorted(set(names) - QUIRKS.keys()):
        raise UsageError(f"unknown quirk {unknown[0]!r}: one of {', '.join(QUIRKS)}")
    if why := conflict(names, modality, marked=marked):
        raise UsageError(f"these quirks can't come together: {why}")


def rejection(names: Iterable[str]) -> Reason | None:
    """Return the reason for which a series with these quirks must be refused, None if it must be cached."""
    return next((QUIRKS[n].rejects for n in names if QUIRKS[n].rejects is not None), None)
