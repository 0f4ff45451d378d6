"""`verify` finds every kind of damage, says where it is and what to do, and passes a sound cache."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from aneurysm.cache.folder import read_spec
from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.manifest import leave_seconds
from aneurysm.cache.tables import write_tables
from aneurysm.errors import CacheError, Reason
from aneurysm.precaching import verify
from aneurysm.precaching.build_series import record_of
from aneurysm.precaching.publish import claim, publish_record
from aneurysm.precaching.run import precache
from aneurysm.rawdata.tables import SeriesNotes
from tests.support.built import Built
from tests.support.cache_paths import record_path, volume_path
from tests.support.cache_state import manifest, same_cache, tree_digest
from tests.support.command import call_in_process


def volume(cache: Path, uid: str) -> Path:
    return volume_path(cache, uid)


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
    "a row has another voxel hash": lambda c, u: _edit_manifest_row(c, u, voxel_hash="sha256:" + "0" * 64),
    "a row has another annotation hash": lambda c, u: _edit_manifest_row(c, u, annotation_hash="sha256:" + "0" * 64),
    "a row has another time": lambda c, u: _edit_manifest_row(c, u, seconds="7.000"),
    "a row has another patient": lambda c, u: _edit_manifest_row(c, u, patient_key="0" * 16),
    "a row has another shape": lambda c, u: _edit_manifest_row(c, u, shape="1x2x3"),
    "the manifest is missing": lambda c, u: (c / "manifest.csv").unlink(),
    "the spec is missing": lambda c, u: (c / "spec.toml").unlink(),
    "the spec was edited": lambda c, u: (c / "spec.toml").write_text(
        (c / "spec.toml").read_text().replace("2000", "1900")
    ),
    "a directory left in volumes": lambda c, u: volume_path(c, "1.2.3").mkdir(parents=True),
    "a temporary directory left in volumes": lambda c, u: shutil.copytree(
        volume(c, u), volume(c, u).with_name(f"{u}.zarr.tmp")
    ),
    "a volume in the folder of others": lambda c, u: shutil.copytree(
        volume(c, u), c / "volumes" / ("00" if volume(c, u).parent.name != "00" else "01") / f"{u}.zarr"
    ),
    "a file beside the folders of volumes": lambda c, u: (c / "volumes" / "note.txt").touch(),
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
    ran = call_in_process("verify", "--workers", 1, "--cache", built.cache, *(["--deep"] if deep else []))
    assert ran.code == 0, ran.text
    assert tree_digest(built.cache) == before, "verify changed the cache"


@pytest.mark.parametrize("damage", SHALLOW)
def test_damage_is_found(cache: Path, built: Built, damage: str) -> None:
    SHALLOW[damage](cache, built.uids[1])
    before = tree_digest(cache)
    ran = call_in_process("verify", "--workers", 1, "--cache", cache)
    assert ran.code not in (0, 2), ran.text
    assert "Traceback" not in ran.text
    assert ran.text.strip(), "nothing said"
    assert tree_digest(cache) == before, "verify changed the cache"


def test_blocks_of_an_older_survey_are_told(cache: Path, built: Built) -> None:
    edit_metadata(
        volume(cache, built.uids[1]) / "zarr.json", lambda c: c["attributes"]["aneurysm"]["blocks"].update(survey=1)
    )
    ran = call_in_process("verify", "--workers", 1, "--cache", cache)
    assert ran.code == 3, ran.text
    assert "found by survey 1" in ran.text


@pytest.mark.parametrize("damage", DEEP)
def test_damage_inside_the_data_is_found_by_deep(cache: Path, built: Built, damage: str) -> None:
    DEEP[damage](cache, built.uids[1])
    ran = call_in_process("verify", "--workers", 1, "--cache", cache, "--deep")
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
    ran = call_in_process("verify", "--workers", 1, "--cache", cache, "--deep")
    assert ran.code == 3, ran.text
    assert re.search(rf"{built.uids[1]}: .*zarr\.json is damaged: (the metadata lacks )?{key}", ran.out)
    assert built.uids[0] not in ran.out


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), FileNotFoundError("zarr.json")])
def test_a_volume_that_can_not_be_read_is_a_fault(
    cache: Path, built: Built, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def fail(folder: Path, *_: object) -> list[str]:
        if built.uids[1] in folder.name:
            raise error
        return []

    monkeypatch.setattr(verify, "find_damage", fail)
    (fault,) = verify.verify(cache, workers=0).faults
    assert fault.where == built.uids[1]
    assert fault.what.startswith(f"the volume can't be read: {type(error).__name__}")


def test_a_volume_that_is_replaced_while_it_is_read_is_no_fault(
    cache: Path, built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a run at the same cache, once zarr.json is read: the mask that this names is there no more."""
    uid, data, after = built.uids[0], cache.parent / "data", cache.parent / "after"
    shutil.copytree(built.data, data)
    shutil.copytree(built.cache, after)
    (data / "segmentations" / f"{uid}_cowseg.nii").unlink()
    assert precache(data, after, workers=0).updates["vessels"] == 1
    parse, done = verify.parse_document, []

    def replacing(content: bytes, name: str) -> dict:
        if f"{uid}.zarr" in name and not done:
            done.append(name)
            shutil.rmtree(volume(cache, uid))
            shutil.copytree(volume(after, uid), volume(cache, uid))
        return parse(content, name)

    monkeypatch.setattr(verify, "parse_document", replacing)
    assert [f for f in verify.verify(cache, workers=0).faults if not f.derived] == []
    assert done


def test_a_mask_that_a_run_is_replacing_is_no_fault_and_one_of_a_dead_run_is(cache: Path, built: Built) -> None:
    (volume(cache, built.uids[0]) / "labels.next").mkdir()
    with claim(CacheLayout(cache), built.uids[0]):
        assert verify.verify(cache, workers=0).faults == []
    (fault,) = verify.verify(cache, workers=0).faults
    assert fault.what == "labels.next is no part of the volume"


def test_a_record_without_a_row_is_a_fault(cache: Path) -> None:
    record_path(cache, "1.2").parent.mkdir(parents=True)
    (record_path(cache, "1.2")).write_text("[]")
    ran = call_in_process("verify", "--workers", 1, "--cache", cache)
    assert ran.code == 3
    assert "1.2: there is a record" in ran.out


# what derives from volumes, and what only readers read ------------------------------------------------------


def _edit(path: Path, change: Callable[[str], str]) -> None:
    before = path.read_text()
    path.write_text(change(before))
    assert path.read_text() != before


def _document(cache: Path, uid: str, edit: Callable[[dict], None], name: str = "zarr.json") -> None:
    edit_metadata(volume(cache, uid) / name, edit)


def _sharding(content: dict) -> dict:
    return content["codecs"][0]["configuration"]


FACTS: dict[str, tuple[Callable[[Path, str], object], str]] = {
    "lesions.csv is missing": (lambda c, u: (c / "lesions.csv").unlink(), "lesions.csv: is missing"),
    "lesions.csv is empty": (lambda c, u: (c / "lesions.csv").write_text(""), "lesions.csv: lacks the column(s)"),
    "all rows of lesions.csv are lost": (
        lambda c, u: _edit(c / "lesions.csv", lambda t: t.splitlines()[0] + "\n"), "has 0 rows of it",
    ),
    "a row of lesions.csv is lost": (
        lambda c, u: _edit(c / "lesions.csv", lambda t: "\n".join(t.splitlines()[:-1]) + "\n"), "has 0 rows of it",
    ),
    "a row stands twice in lesions.csv": (
        lambda c, u: _edit(c / "lesions.csv", lambda t: t + t.splitlines()[-1] + "\n"), "has 2 rows of it",
    ),
    "a lesion is another site": (
        lambda c, u: _edit(c / "lesions.csv", lambda t: t.replace("Basilar Tip", "Left Middle Cerebral Artery")),
        "which are not the 1 of the cache",
    ),
    "a lesion is elsewhere": (
        lambda c, u: _edit(c / "lesions.csv", lambda t: t.replace("0,", "1,", 3)), "which are not the 1 of the cache",
    ),
    "lesions.csv has a row of no series": (
        lambda c, u: _edit(c / "lesions.csv", lambda t: t + "1.2.3" + ",x" * 11 + "\n"), "1.2.3: lesions.csv has 1 row",
    ),
    "rows of lesions.csv in another order": (
        lambda c, u: _edit(c / "lesions.csv", lambda t: "\n".join([t.splitlines()[0], *t.splitlines()[:0:-1], ""])),
        "lesions.csv: is not what the volumes and records give",
    ),
    "rows of manifest.csv in another order": (
        lambda c, u: _edit(c / "manifest.csv", lambda t: "\n".join([t.splitlines()[0], *t.splitlines()[:0:-1], ""])),
        "manifest.csv: is not what the volumes and records give",
    ),
    "a series stands twice in manifest.csv": (
        lambda c, u: _edit(c / "manifest.csv", lambda t: t + t.splitlines()[-1] + "\n"),
        "manifest.csv: is not what the volumes and records give",
    ),
    "OME's scale": (
        lambda c, u: _edit(volume(c, u) / "zarr.json", lambda t: t.replace('"scale": [\n', '"scale": [9.0,\n', 1)),
        "voxel hash differs",
    ),
    "an attribute beside ours": (
        lambda c, u: _document(c, u, lambda d: d["attributes"].update(x=1)), "voxel hash differs",
    ),
    "an attribute more": (lambda c, u: _attributes(c, u, x=1), "zarr.json is damaged: x: Extra inputs"),
    "the patient": (lambda c, u: _attributes(c, u, patient_key="0" * 16), "annotation hash differs"),
    "a label": (lambda c, u: _attributes(c, u, labels=None), "annotation hash differs"),
    "zarr.json in other words": (lambda c, u: _document(c, u, lambda d: None), "zarr.json was changed"),
    "the fill value": (
        lambda c, u: _document(c, u, lambda d: d.update(fill_value=7), "0/zarr.json"), "voxel hash differs",
    ),
    "the codec's level": (
        lambda c, u: _document(
            c, u, lambda d: _sharding(d)["codecs"][1]["configuration"].update(clevel=1), "0/zarr.json"
        ), "voxel hash differs",
    ),
    "the chunk shape": (
        lambda c, u: _document(c, u, lambda d: _sharding(d).update(chunk_shape=[16, 16, 16]), "0/zarr.json"),
        "array 0 has type, chunks",
    ),
    "the names of labels": (
        lambda c, u: _document(c, u, lambda d: d["attributes"].clear(), "labels/vessels/zarr.json"),
        "content hash of the labels differs",
    ),
    "a vessel mask is lost": (lambda c, u: shutil.rmtree(volume(c, u) / "labels"), "the folder of labels is lost"),
    "a stray file": (lambda c, u: (volume(c, u) / "x").write_text("x"), "x is no part of the volume"),
    "the spec's description": (
        lambda c, u: _edit(c / "spec.toml", lambda t: t.replace('description = "', 'description = "not ')),
        "spec.toml: was changed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FACTS)
def test_a_changed_fact_is_found(cache: Path, built: Built, what: str) -> None:
    change, told = FACTS[what]
    change(cache, built.uids[0])
    report = verify.verify(cache, deep=True, workers=0)
    lines = [f"{fault.where}: {fault.what}" for fault in report.faults]
    assert any(told in line for line in lines), lines


def test_records_are_parsed_and_compared(built: Built, tmp_path: Path) -> None:
    data, cache, uid = tmp_path / "data", tmp_path / "cache", built.uids[0]
    shutil.copytree(built.data, data)
    for path in (data / "series" / uid).iterdir():
        path.write_bytes(b"")
    call_in_process("precache", "--data", data, "--cache", cache, "--workers", 1)
    assert verify.verify(cache, deep=True, workers=0).faults == []
    record = record_path(cache, uid)
    sound = record.read_text()
    reason = json.loads(sound)["reason"]
    for changed, told in (
        (sound.replace(reason, "too_large"), "its hash differs"),
        (sound.replace('"Basilar Tip": 1', '"Basilar Tip": 0'), "its hash differs"),
        (sound.replace("\n ", "\n  "), "its hash differs"),
        ("{", "the record is damaged: the file: "),
        (sound.replace('"detail"', '"details"'), "the record is damaged: detail"),
        (sound.replace(uid, built.uids[1]), "the record is of another series"),
    ):
        assert changed != sound
        record.write_text(changed)
        faults = {fault.what for fault in verify.verify(cache, workers=0).faults if fault.where == uid}
        assert any(told in what for what in faults), (told, faults)
    record.unlink()
    assert "there is no record of it" in " ".join(f.what for f in verify.verify(cache, workers=0).faults)


@pytest.mark.parametrize("table", ["manifest.csv", "lesions.csv"])
@pytest.mark.parametrize("content", [None, "", "a,b\n1,2\n"])
def test_fix_writes_the_tables_anew(cache: Path, built: Built, table: str, content: str | None) -> None:
    (cache / table).unlink() if content is None else (cache / table).write_text(content)
    fixed = call_in_process("verify", "--workers", 1, "--cache", cache, "--fix")
    assert fixed.code == 0, fixed.text
    assert "manifest.csv and lesions.csv were not what the volumes and records give, and are written again" in fixed.out
    assert same_cache(cache, built.cache) == []
    assert (cache / "lesions.csv").read_bytes() == (built.cache / "lesions.csv").read_bytes()
    assert "anew" not in call_in_process("verify", "--workers", 1, "--cache", cache, "--fix").out


def test_fix_tells_what_it_can_not_mend(cache: Path, built: Built) -> None:
    shutil.rmtree(volume(cache, built.uids[0]))
    (cache / "lesions.csv").unlink()
    flip_byte(shard(cache, built.uids[1]), 100)
    ran = call_in_process("verify", "--workers", 1, "--cache", cache, "--fix")
    assert ran.code == 3
    assert f"{built.uids[0]}: the manifest says cached, but there is no volume" in ran.out
    assert f"{built.uids[1]}: voxel hash differs" in ran.out
    assert "2 faults" in ran.out


@pytest.mark.parametrize(("number", "code", "told"), [(errno.ENOSPC, 5, "is full"), (errno.EACCES, 3, "be written")])
def test_fix_tells_in_one_line_that_it_can_not_write(
    cache: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int, told: str
) -> None:
    (cache / "lesions.csv").unlink()

    def refuse(path: Path, **_: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("aneurysm.cache.tables.replaced_file", refuse)
    ran = call_in_process("verify", "--workers", 1, "--cache", cache, "--fix")
    assert (ran.code, ran.out) == (code, ""), ran.text
    assert re.fullmatch(rf"aneurysm: .*{cache}.* {told}.*\n", ran.err)


def test_one_flipped_bit_anywhere_is_found(cache: Path) -> None:
    """By chance over files first, so that the small ones have their turn."""
    rng = np.random.default_rng(20)
    (cache / ".seconds").mkdir()
    record = record_of(read_spec(CacheLayout(cache)), "1.2.3", Reason.MOSAIC, "a mosaic", SeriesNotes())
    publish_record(CacheLayout(cache), record)
    write_tables(CacheLayout(cache))
    leave_seconds(CacheLayout(cache), {"1.2.3": 1.5})
    assert verify.verify(cache, workers=0).faults == []
    paths = sorted(p for p in cache.rglob("*") if p.is_file() and p.name != ".patient-key" and ".runs" not in p.parts)
    assert len(paths) > 20
    missed = []
    for _ in range(200):
        path = paths[rng.integers(len(paths))]
        content = path.read_bytes()
        place, bit = int(rng.integers(len(content))), int(rng.integers(8))
        line = content[content.rfind(b"\n", 0, place) + 1 :]
        if path.name == "spec.toml" and line.startswith(b"#"):
            continue
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
        try:
            if not verify.verify(cache, workers=0).faults:
                missed.append((path.relative_to(cache), place, bit))
        except CacheError:
            pass  # the spec
        path.write_bytes(content)
    assert missed == []
    assert verify.verify(cache, workers=0).faults == []


def test_a_flipped_byte_in_the_vessel_mask_is_found(cache: Path, built: Built) -> None:
    path = shard(cache, built.uids[0], "labels/vessels/0")
    flip_byte(path, path.stat().st_size // 3)
    ran = call_in_process("verify", "--workers", 1, "--cache", cache, "--deep")
    assert ran.code not in (0, 2), ran.text
    assert built.uids[0] in ran.text


def test_the_advice_works(cache: Path, built: Built) -> None:
    """What verify finds missing or left over is put right by running precache again."""
    shutil.rmtree(volume(cache, built.uids[0]))
    (cache / "manifest.csv").unlink()
    (cache / ".building" / "1.2.3").mkdir(parents=True)
    assert call_in_process("verify", "--workers", 1, "--cache", cache).code != 0
    ran = call_in_process("precache", "--data", built.data, "--cache", cache, "--workers", 1)
    assert ran.code == 0, ran.text
    assert same_cache(cache, built.cache) == []
    verified = call_in_process("verify", "--workers", 1, "--cache", cache, "--deep")
    assert verified.code == 0, verified.text


def test_verify_says_what_to_do(cache: Path, built: Built) -> None:
    shutil.rmtree(volume(cache, built.uids[1]))
    ran = call_in_process("verify", "--workers", 1, "--cache", cache)
    assert built.uids[1] in ran.text
    assert "precache" in ran.text


# info -------------------------------------------------------------------------------------------------------


def test_info_as_json(built: Built) -> None:
    ran = call_in_process("info", "--cache", built.cache, "--json")
    assert ran.code == 0, ran.text
    text = json.dumps(json.loads(ran.out))
    assert "rsna-1mm" in text
    one = call_in_process("info", "--cache", built.cache, built.uids[0], "--json")
    assert one.code == 0, one.text
    assert built.uids[0] in json.dumps(json.loads(one.out))


def test_info_as_tables(built: Built) -> None:
    ran = call_in_process("info", "--cache", built.cache)
    assert ran.code == 0, ran.text
    assert "rsna-1mm" in ran.out
    one = call_in_process("info", "--cache", built.cache, built.uids[0])
    assert one.code == 0, one.text
    assert built.uids[0] in one.out
    assert "Basilar Tip" in one.out


def test_info_of_a_series_that_is_not_there(built: Built) -> None:
    ran = call_in_process("info", "--cache", built.cache, "1.2.3.4")
    assert ran.code not in (0, 8), ran.text
    assert "Traceback" not in ran.text
    assert "1.2.3.4" in ran.text


def test_info_draws_a_picture(built: Built, tmp_path: Path) -> None:
    picture = tmp_path / "one.png"
    ran = call_in_process("info", "--cache", built.cache, built.uids[0], "--png", picture)
    assert ran.code == 0, ran.text
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 10_000
