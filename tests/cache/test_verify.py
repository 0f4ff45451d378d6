"""`verify` finds every kind of damage, says where it is and what to do, and passes a sound cache."""

from __future__ import annotations

import csv
import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from aneurysm.cache import verify
from aneurysm.cache.writer import content_hash
from tests.cache.conftest import Built
from tests.support.cache_state import manifest, same_cache, tree_digest
from tests.support.command import call_cli


def volume(cache: Path, uid: str) -> Path:
    return cache / "volumes" / f"{uid}.zarr"


def shard(cache: Path, uid: str, array: str = "0") -> Path:
    (found,) = (p for p in (volume(cache, uid) / array).rglob("*") if p.is_file() and p.name != "zarr.json")
    return found


def flip_byte(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(bytes(data))


def edit_metadata(path: Path, edit: Callable[[dict], None]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def edit_manifest(cache: Path, edit: Callable[[list[dict[str, str]]], None]) -> None:
    with (cache / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = list(rows[0])
    edit(rows)
    with (cache / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _attributes(cache: Path, uid: str, **changes: object) -> None:
    edit_metadata(volume(cache, uid) / "zarr.json", lambda c: c["attributes"]["aneurysm"].update(changes))


def _cut_shard_in_half(cache: Path, uid: str) -> None:
    path = shard(cache, uid)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _swap_two_volumes(cache: Path, uid: str) -> None:
    other = next(u for u in manifest(cache) if u != uid)
    shutil.rmtree(volume(cache, other))
    shutil.copytree(volume(cache, uid), volume(cache, other))


def _move_affine(cache: Path, uid: str) -> None:
    def edit(content: dict) -> None:
        content["attributes"]["aneurysm"]["affine_lps"][0][3] += 5.0

    edit_metadata(volume(cache, uid) / "zarr.json", edit)


def _lose_manifest_row(cache: Path, uid: str) -> None:
    edit_manifest(cache, lambda rows: rows.remove(next(r for r in rows if r["series_uid"] == uid)))


def _edit_manifest_row(cache: Path, uid: str, **changes: str) -> None:
    edit_manifest(cache, lambda rows: next(r for r in rows if r["series_uid"] == uid).update(changes))


def _make_uid_row_cached(cache: Path, uid: str) -> None:
    edit_manifest(cache, lambda rows: rows.append({**rows[0], "series_uid": "1.2.3"}))


SHALLOW: dict[str, Callable[[Path, str], object]] = {
    "a volume is missing": lambda c, u: shutil.rmtree(volume(c, u)),
    "the shard is missing": lambda c, u: shard(c, u).unlink(),
    "the shard is empty": lambda c, u: shard(c, u).write_bytes(b""),
    "the shard is cut in half": _cut_shard_in_half,
    "the group's metadata are missing": lambda c, u: (volume(c, u) / "zarr.json").unlink(),
    "the group's metadata are cut": lambda c, u: (volume(c, u) / "zarr.json").write_text('{"zarr_format": 3'),
    "the array's metadata are missing": lambda c, u: (volume(c, u) / "0" / "zarr.json").unlink(),
    "another digest in the volume": lambda c, u: _attributes(c, u, digest="0" * 64),
    "another series in the volume": lambda c, u: _attributes(c, u, series_uid="1.2.3"),
    "an unknown format version": lambda c, u: _attributes(c, u, format_version=99),
    "a row of the manifest is missing": _lose_manifest_row,
    "a row too many": _make_uid_row_cached,
    "a row says rejected": lambda c, u: _edit_manifest_row(c, u, status="rejected", reason="mosaic"),
    "a row has another digest": lambda c, u: _edit_manifest_row(c, u, digest="0" * 64),
    "a row has another content hash": lambda c, u: _edit_manifest_row(c, u, content_hash="sha256:" + "0" * 64),
    "a row has another shape": lambda c, u: _edit_manifest_row(c, u, shape="1x2x3"),
    "the manifest is missing": lambda c, u: (c / "manifest.csv").unlink(),
    "the spec is missing": lambda c, u: (c / "spec.toml").unlink(),
    "the spec was edited": lambda c, u: (c / "spec.toml").write_text(
        (c / "spec.toml").read_text().replace("2000", "1900")
    ),
    "a directory left in volumes": lambda c, u: (c / "volumes" / "1.2.3.zarr").mkdir(),
    "a temporary directory left in volumes": lambda c, u: shutil.copytree(
        volume(c, u), c / "volumes" / f"{u}.zarr.tmp"
    ),
    "an unfinished volume in .building": lambda c, u: (c / ".building" / "1.2.3").mkdir(parents=True),
}

DEEP: dict[str, Callable[[Path, str], object]] = {
    "a byte flipped in the first chunk": lambda c, u: flip_byte(shard(c, u), 100),
    "a byte flipped in the middle": lambda c, u: flip_byte(shard(c, u), shard(c, u).stat().st_size // 2),
    "a byte flipped in the shard's index": lambda c, u: flip_byte(shard(c, u), shard(c, u).stat().st_size - 30),
    "two volumes swapped": _swap_two_volumes,
    "the affine was edited": _move_affine,
}


@pytest.fixture
def cache(built: Built, tmp_path: Path) -> Path:
    shutil.copytree(built.cache, tmp_path / "cache")
    return tmp_path / "cache"


@pytest.mark.parametrize("deep", [False, True], ids=["", "deep"])
def test_a_sound_cache_passes(built: Built, deep: bool) -> None:
    before = tree_digest(built.cache)
    ran = call_cli("verify", "--workers", 1, "--cache", built.cache, *(["--deep"] if deep else []))
    assert ran.code == 0, ran.text
    assert tree_digest(built.cache) == before, "verify changed the cache"


@pytest.mark.parametrize("damage", SHALLOW)
def test_damage_is_found(cache: Path, built: Built, damage: str) -> None:
    SHALLOW[damage](cache, built.uids[1])
    before = tree_digest(cache)
    ran = call_cli("verify", "--workers", 1, "--cache", cache)
    assert ran.code not in (0, 2), ran.text
    assert "Traceback" not in ran.text
    assert ran.text.strip(), "nothing said"
    assert tree_digest(cache) == before, "verify changed the cache"


def test_blocks_of_an_older_survey_are_told(cache: Path, built: Built) -> None:
    edit_metadata(
        volume(cache, built.uids[1]) / "zarr.json", lambda c: c["attributes"]["aneurysm"]["blocks"].pop("survey")
    )
    ran = call_cli("verify", "--workers", 1, "--cache", cache)
    assert ran.code == 3, ran.text
    assert "found by survey 1" in ran.text


@pytest.mark.parametrize("damage", DEEP)
def test_damage_inside_the_data_is_found_by_deep(cache: Path, built: Built, damage: str) -> None:
    DEEP[damage](cache, built.uids[1])
    ran = call_cli("verify", "--workers", 1, "--cache", cache, "--deep")
    assert ran.code not in (0, 2), ran.text
    assert "Traceback" not in ran.text
    if damage != "two volumes swapped":
        assert built.uids[1] in ran.text


ODD: dict[str, object] = {
    "intensity": {"scale": 0, "offset": 0, "clip": [0, 1]},
    "affine_lps": [[1, 0], [0]],
    "lesions": [{"row": 3}],
    "blocks": 7,
    "source": {},
}


@pytest.mark.parametrize("key", ODD)
def test_odd_metadata_are_a_fault(cache: Path, built: Built, key: str) -> None:
    _attributes(cache, built.uids[1], **{key: ODD[key]})
    ran = call_cli("verify", "--workers", 1, "--cache", cache, "--deep")
    assert ran.code == 3, ran.text
    assert f"{built.uids[1]}: content hash differs" in ran.out
    assert built.uids[0] not in ran.out


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), FileNotFoundError("zarr.json")])
def test_a_volume_that_can_not_be_read_is_a_fault(
    cache: Path, built: Built, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def fail(folder: Path, _attributes: object) -> str:
        if built.uids[1] in folder.name:
            raise error
        return content_hash(folder, _attributes)

    monkeypatch.setattr(verify, "content_hash", fail)
    ran = call_cli("verify", "--workers", 1, "--cache", cache)
    assert ran.code == 3
    assert f"{built.uids[1]}: the volume can't be read: {type(error).__name__}" in ran.out


def test_a_record_without_a_row_is_a_fault(cache: Path) -> None:
    (cache / "rejected").mkdir(exist_ok=True)
    (cache / "rejected" / "1.2.json").write_text("[]")
    ran = call_cli("verify", "--workers", 1, "--cache", cache)
    assert ran.code == 3
    assert "1.2: there is a record" in ran.out


def test_a_flipped_byte_in_the_vessel_mask_is_found(cache: Path, built: Built) -> None:
    path = shard(cache, built.uids[0], "labels/vessels/0")
    flip_byte(path, path.stat().st_size // 3)
    ran = call_cli("verify", "--workers", 1, "--cache", cache, "--deep")
    assert ran.code not in (0, 2), ran.text
    assert built.uids[0] in ran.text


def test_the_advice_works(cache: Path, built: Built) -> None:
    """What verify finds missing or left over is put right by running precache again."""
    shutil.rmtree(volume(cache, built.uids[0]))
    (cache / "manifest.csv").unlink()
    (cache / ".building" / "1.2.3").mkdir(parents=True)
    assert call_cli("verify", "--workers", 1, "--cache", cache).code != 0
    ran = call_cli("precache", "--data", built.data, "--cache", cache, "--workers", 1)
    assert ran.code == 0, ran.text
    assert same_cache(cache, built.cache) == []
    verified = call_cli("verify", "--workers", 1, "--cache", cache, "--deep")
    assert verified.code == 0, verified.text


def test_verify_says_what_to_do(cache: Path, built: Built) -> None:
    shutil.rmtree(volume(cache, built.uids[1]))
    ran = call_cli("verify", "--workers", 1, "--cache", cache)
    assert built.uids[1] in ran.text
    assert "precache" in ran.text


# info -------------------------------------------------------------------------------------------------------


def test_info_as_json(built: Built) -> None:
    ran = call_cli("info", "--cache", built.cache, "--json")
    assert ran.code == 0, ran.text
    text = json.dumps(json.loads(ran.out))
    assert "rsna-1mm" in text
    one = call_cli("info", "--cache", built.cache, built.uids[0], "--json")
    assert one.code == 0, one.text
    assert built.uids[0] in json.dumps(json.loads(one.out))


def test_info_as_tables(built: Built) -> None:
    ran = call_cli("info", "--cache", built.cache)
    assert ran.code == 0, ran.text
    assert "rsna-1mm" in ran.out
    one = call_cli("info", "--cache", built.cache, built.uids[0])
    assert one.code == 0, one.text
    assert built.uids[0] in one.out
    assert "Basilar Tip" in one.out


def test_info_of_a_series_that_is_not_there(built: Built) -> None:
    ran = call_cli("info", "--cache", built.cache, "1.2.3.4")
    assert ran.code not in (0, 8), ran.text
    assert "Traceback" not in ran.text
    assert "1.2.3.4" in ran.text


def test_info_draws_a_picture(built: Built, tmp_path: Path) -> None:
    picture = tmp_path / "one.png"
    ran = call_cli("info", "--cache", built.cache, built.uids[0], "--png", picture)
    assert ran.code == 0, ran.text
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 10_000
