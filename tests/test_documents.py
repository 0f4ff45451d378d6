"""JSON and TOML of any length and depth: an answer or a ValueError, never a RecursionError, and never hours."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from aneurysm.cache.metadata import read_document
from aneurysm.cache.volume import _read_json
from aneurysm.documents import MOST_JSON, MOST_TOML, parse_json, parse_toml, read_json, read_toml
from aneurysm.errors import CacheError, DamagedCacheError, SpecError, UsageError
from aneurysm.inference.calibration import read_calibration
from aneurysm.spec import load_spec, shipped_specs
from aneurysm.training.config_file import load_config

DEEP_TOML = {
    "arrays": "a = " + "[" * 100_000,
    "tables": "a = " + "{a = " * 50_000,
    "a key": ".".join("a" * 100_000) + " = 1",
    "a quoted key": ".".join(['"a"'] * 50_000) + " = 1",
    "a key within": "a = {" + " . ".join("b" * 50_000) + " = 1}",
    "a heading": "[" + ".".join("a" * 100_000) + "]",
}
DEEP_JSON = {"arrays": "[" * 1_000_000, "objects": '{"a":' * 200_000}


@pytest.mark.parametrize("text", DEEP_TOML.values(), ids=DEEP_TOML)
def test_toml_that_is_nested_too_deep_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="nested too deep"):
        parse_toml(text)


@pytest.mark.parametrize("text", DEEP_JSON.values(), ids=DEEP_JSON)
def test_json_that_is_nested_too_deep_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="nested too deep"):
        parse_json(text)


def test_what_people_write_is_read() -> None:
    text = (
        "# " + "." * 200 + "\n[storage]\nweights = [" + "0.5, " * 200 + ']\nnote = "one. two. three."\na.b."c.d" = 1\n'
    )
    found = parse_toml(text)
    assert found["storage"]["weights"] == [0.5] * 200
    assert found["storage"]["a"] == {"b": {"c.d": 1}}
    assert parse_json(json.dumps(found)) == found


def test_files_of_gigabytes_are_not_read(tmp_path: Path) -> None:
    for read, most in ((read_toml, MOST_TOML), (read_json, MOST_JSON)):
        path = tmp_path / "sparse"
        with path.open("wb") as file:
            file.truncate(2**33)
        with pytest.raises(ValueError, match=f"longer than {most} bytes"):
            read(path)


@pytest.mark.parametrize(
    "text", [DEEP_TOML["arrays"], DEEP_TOML["a key"], " " * 1_000_000], ids=["arrays", "key", "long"]
)
def test_a_spec_or_configuration_without_end_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "spec.toml"
    path.write_text(text)
    for read, error in ((load_spec, SpecError), (load_config, UsageError)):
        with pytest.raises(error, match=r"spec\.toml") as raised:
            read(path)  # type: ignore[operator]
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 300


def test_metadata_without_end_are_damage(tmp_path: Path) -> None:
    (tmp_path / "zarr.json").write_text(DEEP_JSON["objects"])
    with pytest.raises(CacheError, match="damaged"):
        read_document(tmp_path)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(DamagedCacheError, match="damaged"):
            _read_json(folder, "zarr.json", "volume x")
    finally:
        os.close(folder)
    (tmp_path / "calibration.json").write_text(DEEP_JSON["arrays"])
    with pytest.raises(UsageError, match="calibration"):
        read_calibration(tmp_path)


def test_shipped_specs_are_within_the_bounds() -> None:
    assert shipped_specs()
    for name in shipped_specs():
        load_spec(name)
