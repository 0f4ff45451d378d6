"""A cached volume, written here as the contract says, becomes a picture with lesions and vessels in place."""

import errno
import os

import numpy as np
import pytest
import zarr
from matplotlib.figure import Figure
from PIL import Image

from aneurysm.annotations.lesions import Lesion
from aneurysm.cache.metadata import MaskEntry, VolumeDocument
from aneurysm.errors import CacheError, CacheNotFoundError, DamagedCacheError, NoSpaceError, UsageError
from aneurysm.report.volume_picture import draw_volume
from aneurysm.volume.blocks import pack_bits
from aneurysm.volume.intensity import Intensity
from tests.support.metadata import metadata

AFFINE = [[0, 0, 1.0, -60], [0, 1.0, 0, -70], [1.0, 0, 0, -40], [0, 0, 0, 1]]
LESIONS = (
    Lesion("Left Middle Cerebral Artery", (60.0, 60.0, 95.0), (35.0, -10.0, 20.0), 0),
    Lesion("Basilar Tip", (40.0, 70.0, 60.0), (0.0, 0.0, 0.0), 1),
)
CT = Intensity("HU", 1.0, 0.0, (-1000.0, 2000.0), (-1000.0, 2000.0), {})
MR = Intensity("arbitrary", 0.5, 10.0, (10.0, 2000.0), (10.0, 400.0), {})


NO_VESSELS = pack_bits(np.zeros((10, 18, 15), bool))


def write_volume(path, *, modality="CTA", intensity=CT, lesions=LESIONS, vessels=True, affine=AFFINE):
    """A head with two lesions in the cache's format; with affine given, the same array lies differently."""
    z, y, x = np.ogrid[:80, :140, :120]
    r = ((z - 40) / 38) ** 2 + ((y - 70) / 62) ** 2 + ((x - 60) / 52) ** 2
    volume = np.full(r.shape, -1000 if intensity is CT else 0, np.int16)
    volume[r < 1] = 700
    volume[r < 0.85] = 40 if intensity is CT else 300
    volume[r < 0.08] = 5 if intensity is CT else 80
    for lesion in lesions:
        zyx = np.rint(lesion.zyx).astype(int)
        near = (z - zyx[0]) ** 2 + (y - zyx[1]) ** 2 + (x - zyx[2]) ** 2 < 9
        volume[near] = 1500
    group = zarr.create_group(str(path), zarr_format=3)
    group.create_array("0", data=volume, chunks=(32, 32, 32), shards=(96, 160, 128))
    if vessels:
        mask = np.zeros(volume.shape, np.uint8)
        mask[60, 60, 60:96] = 10
        mask[20:41, 69:72, 59:62] = 2
        group.create_array("labels/vessels/0", data=mask, chunks=(32, 32, 32))
    mask = MaskEntry(path="labels/vessels/0", file_hash="", content_hash="", blocks=NO_VESSELS) if vessels else None
    own = metadata(
        "1.2.826.0.1.1", volume.shape, affine=affine, modality=modality, intensity=intensity, lesions=tuple(lesions),
        vessel_mask=mask,
    )  # fmt: skip
    (path / "zarr.json").write_bytes(VolumeDocument.of({}, own).to_bytes())
    return path


@pytest.mark.parametrize(
    ("modality", "intensity", "lesions", "vessels"),
    [("CTA", CT, LESIONS, True), ("MRI T2", MR, [], False), ("MRA", MR, LESIONS, False)],
    ids=["CTA with lesions and vessels", "T2 with neither", "MRA with lesions"],
)
def test_the_picture_is_written_and_shows_something(tmp_path, modality, intensity, lesions, vessels):
    volume = write_volume(tmp_path / "a.zarr", modality=modality, intensity=intensity, lesions=lesions, vessels=vessels)
    draw_volume(volume, tmp_path / "a.png")
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    assert picture.shape[0] > 600
    assert picture.shape[1] > 900
    grey = picture.max(axis=2)
    assert (grey < 20).any()
    assert (grey > 200).mean() > 0.005
    assert picture[..., :3].std() > 20


def panels(monkeypatch, volume, png):
    """The axes of the figure that draw_volume makes, as they are when it is written."""
    figures = []
    original = Figure.savefig

    def catch(figure, *args, **kwargs):
        figures.append(figure)
        return original(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", catch)
    draw_volume(volume, png)
    return figures[0], np.array(figures[0].axes).reshape(2, 3)


def test_circles_lie_on_the_bright_markers(tmp_path, monkeypatch):
    volume = write_volume(tmp_path / "a.zarr")
    _, axes = panels(monkeypatch, volume, tmp_path / "a.png")
    for panel in axes.flat:
        image = panel.images[0]
        left, right, bottom, top = image.get_extent()
        values = np.asarray(image.get_array())
        circles = [line.get_xydata() for line in panel.lines]
        # The scale bar is a line, too: of two points.
        circles = [circle for circle in circles if len(circle) > 2]
        assert len(circles) == len(LESIONS)
        for circle in circles[:1]:
            x, y = (circle.min(axis=0) + circle.max(axis=0)) / 2
            column = int((x - left) / (right - left) * values.shape[1])
            row = int((y - top) / (bottom - top) * values.shape[0])
            assert values[row, column] == 1500


def test_letters_and_order_of_the_panels(tmp_path, monkeypatch):
    flipped = [[0, 0, -1.0, 59], [0, 1.0, 0, -70], [-1.0, 0, 0, 39], [0, 0, 0, 1]]
    for name, affine in (("a", AFFINE), ("flipped", flipped)):
        volume = write_volume(tmp_path / f"{name}.zarr", affine=affine)
        _, axes = panels(monkeypatch, volume, tmp_path / f"{name}.png")
        letters = [[t.get_text().strip() for t in panel.texts if t.get_text().strip() in "RLAPSI"] for panel in axes[0]]
        assert letters == [list("RLAP"), list("RLSI"), list("APSI")]
        assert [panel.get_title().split(",")[0] for panel in axes[1]] == ["axial", "coronal", "sagittal"]
        assert all(panel.get_aspect() in (1, "equal") for panel in axes.flat)


def test_a_flipped_array_turns_the_picture_round(tmp_path, monkeypatch):
    flipped = [[0, 0, -1.0, 59], [0, 1.0, 0, -70], [-1.0, 0, 0, 39], [0, 0, 0, 1]]
    _, straight = panels(monkeypatch, write_volume(tmp_path / "a.zarr", lesions=LESIONS), tmp_path / "a.png")
    _, turned = panels(monkeypatch, write_volume(tmp_path / "b.zarr", affine=flipped), tmp_path / "b.png")
    a, b = (np.asarray(axes[1, 1].images[0].get_array()) for axes in (straight, turned))
    # Half of an even slab lies on either side of a voxel, and the two turn it round.
    assert np.mean(a == b[::-1, ::-1]) > 0.95


def test_the_title_and_the_legend_say_what_is_seen(tmp_path, monkeypatch):
    figure, _ = panels(monkeypatch, write_volume(tmp_path / "a.zarr"), tmp_path / "a.png")
    title = figure.get_suptitle()
    window = "about lesion 1   black to white: slices -100 to 600, projections 0 to 600 HU"
    for part in ("1.2.826.0.1.1", "CTA", "80 x 140 x 120", "1 x 1 x 1 mm", "rsna-1mm", window):
        assert part in title
    assert title.count("HU") == 1
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    sites = ["Left Middle Cerebral Artery", "Basilar Tip"]
    dashed = "dashed: more than 5 mm off the slice, outside of the projected 24 mm"
    assert legend == ["1 Left Middle Cerebral Artery", "2 Basilar Tip", dashed, *sites]


def test_errors_say_what_is_wrong(tmp_path):
    with pytest.raises(CacheNotFoundError, match="there is no volume none in the cache"):
        draw_volume(tmp_path / "none.zarr", tmp_path / "a.png")
    zarr.create_group(str(tmp_path / "other.zarr"))
    with pytest.raises(CacheError, match=r"volume other: zarr\.json lacks the attribute aneurysm"):
        draw_volume(tmp_path / "other.zarr", tmp_path / "a.png")
    volume = write_volume(tmp_path / "a.zarr")
    with pytest.raises(UsageError, match="no folder"):
        draw_volume(volume, tmp_path / "missing" / "a.png")


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, NoSpaceError), (errno.EROFS, UsageError)])
def test_a_picture_that_can_not_be_written_leaves_the_one_before(tmp_path, monkeypatch, number, kind):
    volume, picture = write_volume(tmp_path / "a.zarr", vessels=False), tmp_path / "a.png"
    picture.write_bytes(b"before")

    def refuse(_descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Figure, "savefig", lambda _figure, file, **_: file.write(b"half"))
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(kind) as told:
        draw_volume(volume, picture)
    assert type(told.value) is kind
    assert str(tmp_path) in str(told.value)
    assert picture.read_bytes() == b"before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "a.zarr"]


@pytest.mark.parametrize("damaged", [{"blocks": {"edge": [8, 8, 8]}}, {"affine_lps": [1, 2]}, {"intensity": None}])
def test_damaged_metadata_are_told_in_one_line(tmp_path, damaged):
    volume = write_volume(tmp_path / "a.zarr", lesions=[], vessels=False)
    group = zarr.open_group(str(volume))
    group.attrs["aneurysm"] = {**group.attrs["aneurysm"], **damaged}
    with pytest.raises(DamagedCacheError, match=r"^volume a: zarr\.json is damaged: .*\. Run aneurysm verify$"):
        draw_volume(volume, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_a_damaged_chunk_is_told(tmp_path):
    volume = write_volume(tmp_path / "a.zarr")
    shard = volume / "0/c/0/0/0"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(DamagedCacheError, match="volume a, array 0"):
        draw_volume(volume, tmp_path / "a.png")


def test_the_skull_does_not_hide_what_lies_within(tmp_path, monkeypatch):
    """Of a projection of the whole head nothing but bone would be seen."""
    _, axes = panels(monkeypatch, write_volume(tmp_path / "a.zarr"), tmp_path / "a.png")
    for panel in axes[1]:
        values = np.asarray(panel.images[0].get_array())
        height, width = values.shape
        middle = values[height // 2 - 5 : height // 2 + 5, width // 2 - 5 : width // 2 + 5]
        assert np.median(middle) < 100
        assert panel.images[0].get_clim() == (0, 600)


def test_slices_go_through_the_lesion(tmp_path, monkeypatch):
    _, axes = panels(monkeypatch, write_volume(tmp_path / "a.zarr", lesions=LESIONS[:1]), tmp_path / "a.png")
    for panel in axes[0]:
        assert np.asarray(panel.images[0].get_array()).max() == 1500
        assert panel.lines[0].get_linestyle() == "-"


def test_of_several_lesions_the_one_among_most_others_is_shown(tmp_path, monkeypatch):
    more = Lesion("Basilar Tip", (43.0, 73.0, 60.0), (0.0, 3.0, 3.0), 2)
    figure, axes = panels(monkeypatch, write_volume(tmp_path / "a.zarr", lesions=[*LESIONS, more]), tmp_path / "a.png")
    assert "about lesion 2 " in figure.get_suptitle()
    styles = [[line.get_linestyle() for line in panel.lines if len(line.get_xdata()) > 2] for panel in axes[1]]
    assert [style[0] == "-" for style in styles] == [False, True, False]
    assert all(style[1:] == ["-", "-"] for style in styles)


@pytest.mark.parametrize(("vessels", "name"), [(True, "the middle of the vessels"), (False, "the middle of the head")])
def test_without_lesions_it_is_about_vessels_or_the_middle(tmp_path, monkeypatch, vessels, name):
    volume = write_volume(tmp_path / "a.zarr", lesions=[], vessels=vessels)
    figure, _ = panels(monkeypatch, volume, tmp_path / "a.png")
    assert f"about {name} " in figure.get_suptitle()


def test_dark_vessels_are_seen_by_the_least_signal(tmp_path, monkeypatch):
    volume = write_volume(tmp_path / "a.zarr", modality="MRI T2", intensity=MR, lesions=[], vessels=False)
    _, axes = panels(monkeypatch, volume, tmp_path / "a.png")
    for panel in axes[1]:
        assert "minimum of 24 mm" in panel.get_title()
        values = np.asarray(panel.images[0].get_array())
        assert values[values.shape[0] // 2, values.shape[1] // 2] == 80 * 0.5 + 10


def test_panels_of_a_row_share_their_window(tmp_path, monkeypatch):
    _, axes = panels(monkeypatch, write_volume(tmp_path / "a.zarr", modality="MRA", intensity=MR), tmp_path / "a.png")
    for row in axes:
        assert len({panel.images[0].get_clim() for panel in row}) == 1


def test_each_panel_has_a_bar_of_20_mm(tmp_path, monkeypatch):
    _, axes = panels(monkeypatch, write_volume(tmp_path / "a.zarr"), tmp_path / "a.png")
    for panel in axes.flat:
        (bar,) = [line.get_xdata() for line in panel.lines if len(line.get_xdata()) == 2]
        assert bar[1] - bar[0] == 20
        assert any(text.get_text() == "20 mm" for text in panel.texts)


@pytest.mark.parametrize(("name", "kind"), [("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("a.png", "PNG")])
def test_a_file_is_of_the_kind_that_its_name_says(tmp_path, name, kind):
    draw_volume(write_volume(tmp_path / "a.zarr"), tmp_path / name)
    with Image.open(tmp_path / name) as picture:
        assert picture.format == kind


@pytest.mark.parametrize("name", ["a.gif", "a", "a.pdf"])
def test_another_kind_of_file_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match=r"pictures are written as \.png, \.jpg, \.jpeg"):
        draw_volume(write_volume(tmp_path / "a.zarr"), tmp_path / name)
    assert not (tmp_path / name).exists()
