"""What a cache spec asks for is what comes out; what it can't ask for is an error that names the key."""

from __future__ import annotations

import numpy as np
import pytest

from aneurysm.errors import SpecError, UsageError
from aneurysm.spec import load_spec, parse_spec
from tests.support.acquisition import PLANES, acquire
from tests.support.cached import cached
from tests.support.pattern import anatomy
from tests.support.series import write_series
from tests.support.specs import changed, spec_text, write_spec
from tests.support.truth import assert_frame, assert_shows


@pytest.mark.parametrize("name", ["rsna-1mm", "rsna-1mm-u8", "rsna-head-0.5mm"])
def test_a_shipped_spec_loads_and_says_why(name):
    assert load_spec(name).name == name
    assert spec_text(name).count("#") > 5


def test_shipped_specs_have_different_digests():
    assert len({load_spec(name).digest for name in ("rsna-1mm", "rsna-1mm-u8", "rsna-head-0.5mm")}) == 3


def test_a_spec_of_ones_own_by_path_changes_the_grid(tmp_path):
    acquisition = acquire(gap_mm=1.5, spacing_mm=(0.6, 0.9), shape=(40, 32))
    pattern = anatomy(acquisition.centre)
    write_series(tmp_path / "s", acquisition, pattern)
    spec = write_spec(tmp_path / "mine.toml", spacing_mm="[2.0, 1.5, 0.8]")
    image = cached(tmp_path / "s", spec=str(spec))
    assert_frame(image, np.array([2.0, 1.5, 0.8]))
    assert_shows(image, acquisition, pattern)
    assert image.meta["spec"] == "mine"
    assert image.meta["digest"] == load_spec(spec).digest


def test_comments_and_order_do_not_change_the_digest_but_values_do(tmp_path):
    plain = write_spec(tmp_path / "mine.toml")
    digest = load_spec(plain).digest
    plain.write_text("# a remark\n" + plain.read_text())
    assert load_spec(plain).digest == digest
    assert load_spec(write_spec(tmp_path / "mine.toml", clip_hu="[-1000.0, 2001.0]")).digest != digest


def test_a_resolved_spec_can_be_read_again_whatever_its_description():
    spec = load_spec("rsna-1mm").model_copy(update={"description": 'brain \U0001f9e0, "quoted" \\ \n\t\x7f\x01 é'})
    assert parse_spec(spec.to_toml(), "spec.toml") == spec


@pytest.mark.parametrize("reverse", [False, True], ids=["along the normal", "against the normal"])
@pytest.mark.parametrize("plane", PLANES)
def test_a_box_is_cut_from_the_top_whatever_the_plane(tmp_path, plane, reverse):
    acquisition = acquire(plane, shape=(32, 30), slices=28, reverse=reverse)
    pattern = anatomy(acquisition.centre)
    write_series(tmp_path / "s", acquisition, pattern)
    spec = write_spec(tmp_path / "box.toml", region_mm=(11.0, 14.0, 16.0))
    box = cached(tmp_path / "s", spec=str(spec))
    assert box.stored.shape == (11, 14, 16)
    assert_frame(box)
    assert_shows(box, acquisition, pattern)
    corners = acquisition.points().reshape(-1, 3)
    top, middle = corners.max(axis=0)[2] + 0.5, (corners.max(axis=0) + corners.min(axis=0)) / 2
    centres = box.centres()
    assert centres[-1, 0, 0, 2] + 0.5 == pytest.approx(top, abs=0.51), "the top of the volume"
    assert np.allclose(centres.mean(axis=(0, 1, 2))[:2], middle[:2], atol=0.51), "centred left-right, front-back"


def test_a_box_larger_than_the_volume_keeps_all_of_it(tmp_path):
    acquisition = acquire()
    pattern = anatomy(acquisition.centre)
    write_series(tmp_path / "s", acquisition, pattern)
    spec = write_spec(tmp_path / "box.toml", region_mm=(200.0, 160.0, 160.0))
    image = cached(tmp_path / "s", spec=str(spec))
    assert_shows(image, acquisition, pattern)
    assert np.all(np.array(image.stored.shape) >= (24, 32, 28))


def test_the_head_spec_has_half_a_millimetre(tmp_path):
    acquisition = acquire(spacing_mm=(0.6, 0.6), gap_mm=0.7)
    pattern = anatomy(acquisition.centre)
    write_series(tmp_path / "s", acquisition, pattern)
    image = cached(tmp_path / "s", spec="rsna-head-0.5mm")
    assert_frame(image, 0.5)
    assert_shows(image, acquisition, pattern)


@pytest.mark.parametrize(
    "line, key",
    [
        ("spacings_mm = [1.0, 1.0, 1.0]", "spacings_mm"),
        ("Spacing_mm = [1.0, 1.0, 1.0]", "Spacing_mm"),
        ("window = 3", "window"),
    ],
)
def test_an_unknown_key_is_named(tmp_path, line, key):
    path = tmp_path / "mine.toml"
    path.write_text(f"{line}\n{spec_text()}")
    with pytest.raises(SpecError, match=key):
        load_spec(path)


def test_an_unknown_key_in_a_section_is_named_with_its_section(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(spec_text().replace("[storage]", "[storage]\nchunks = [32, 32, 32]"))
    with pytest.raises(SpecError, match=r"storage\.chunks"):
        load_spec(path)


@pytest.mark.parametrize(
    "key, value",
    [
        ("spacing_mm", "[0.0, 1.0, 1.0]"),
        ("spacing_mm", "[-1.0, 1.0, 1.0]"),
        ("spacing_mm", "[nan, 1.0, 1.0]"),
        ("spacing_mm", "[inf, 1.0, 1.0]"),
        ("spacing_mm", "[1.0, 1.0]"),
        ("spacing_mm", '"1 mm"'),
        ("clip_hu", "[2000.0, -1000.0]"),
        ("clip_hu", "[-inf, inf]"),
        ("clip_hu", "[nan, 2000.0]"),
        ("window_hu", "[-100.0, 90000.0]"),
        ("percentiles", "[99.0, 1.0]"),
        ("percentiles", "[-1.0, 99.0]"),
        ("levels", "0"),
        ("levels", "1000000"),
        ("dtype", '"float128"'),
        ("chunk", "[0, 32, 32]"),
        ("codec", '"rar"'),
        ("max_gap_ratio", "-1.0"),
        ("max_gap_mm", "nan"),
        ("max_gap_ratio", "nan"),
        ("max_misalignment_mm", "nan"),
        ("frame", '"patient"'),
        ("version", '"one"'),
    ],
)
def test_an_impossible_value_is_an_error_that_names_the_key(tmp_path, key, value):
    path = tmp_path / "mine.toml"
    path.write_text(changed(spec_text(), key, value))
    with pytest.raises(SpecError, match=key):
        load_spec(path)


def test_a_missing_key_is_named(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("\n".join(line for line in spec_text().splitlines() if not line.startswith("dtype")))
    with pytest.raises(SpecError, match="dtype"):
        load_spec(path)


def test_a_spec_that_is_not_toml_is_an_error_that_names_the_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("spacing_mm: 1")
    with pytest.raises(SpecError, match=r"mine\.toml"):
        load_spec(path)


def test_a_spec_that_does_not_exist_is_a_usage_error_that_lists_those_that_do():
    with pytest.raises(UsageError, match="rsna-1mm"):
        load_spec("rsna-1cm")
