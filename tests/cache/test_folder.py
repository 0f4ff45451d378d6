"""What is opened as a cache: one of the right spec, whose files can be read; and which commands say what of others."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from pathlib import Path

import pytest

from aneurysm.cache.cache import open_cache
from aneurysm.cache.folder import key_fault, patient_secret, prepare_cache, read_spec
from aneurysm.cache.layout import CacheLayout
from aneurysm.errors import CacheError, PatientKeyError, SpecMismatchError
from aneurysm.precaching import finish
from aneurysm.processes import files
from aneurysm.processes.files import write_once
from aneurysm.spec import load_spec
from tests.support.built import Built
from tests.support.cache_paths import volume_path
from tests.support.cache_state import tree_digest
from tests.support.command import call_in_process, environment


def write_meanwhile(monkeypatch: pytest.MonkeyPatch, path: Path, content: str) -> None:
    """Another run writes ``path`` after this one saw that it was not there, and before it has written its own."""
    monkeypatch.setattr(files, "lock_file", lambda *_, **__: path.write_text(content))


def test_of_two_first_runs_with_different_specs_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = CacheLayout(tmp_path)
    write_meanwhile(monkeypatch, layout.spec, load_spec("rsna-1mm-u8").to_toml())
    with pytest.raises(SpecMismatchError, match="rsna-1mm-u8"):
        prepare_cache(layout, load_spec("rsna-1mm"))
    assert read_spec(layout).name == "rsna-1mm-u8"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["spec.toml", "volumes"]


def test_the_first_to_write_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "key"
    write_once(path, "one", 0o600)
    write_once(path, "two")
    assert path.read_text() == "one"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    monkeypatch.delenv("ANEURYSM_PATIENT_KEY", raising=False)
    layout = CacheLayout(tmp_path)
    write_meanwhile(monkeypatch, layout.patient_key, "theirs\n")
    assert patient_secret(layout) == b"theirs"


def test_an_empty_key_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANEURYSM_PATIENT_KEY", raising=False)
    layout = CacheLayout(tmp_path)
    layout.patient_key.touch()
    with pytest.raises(CacheError, match="patient-key is empty"):
        patient_secret(layout)


def own_key(layout: CacheLayout) -> bytes:
    return layout.patient_key.read_bytes().strip()


def volume(layout: CacheLayout) -> None:
    layout.volume("1.2").mkdir(parents=True)


def remove(path: Path) -> None:
    path.unlink()


SECOND_KEYS = {
    # What befalls a cache that has volumes; the key in the environment, before and then; what is said of it.
    "another in the environment": ("one", lambda _: None, "two", "another key .* than ANEURYSM_PATIENT_KEY has now"),
    "none in the environment": ("one", lambda _: None, "", "set ANEURYSM_PATIENT_KEY to that which"),
    "one in the environment, after the cache's own": ("", lambda _: None, "two", "or unset it: .patient-key is there"),
    "the cache's own lost": ("", lambda at: remove(at.patient_key), "", "or bring .patient-key back"),
    "the cache's own replaced": ("", lambda at: at.patient_key.write_text("x"), "", ".patient-key is not the key"),
    "the fingerprint lost": ("one", lambda at: remove(at.patient_key_check), "one", "neither .patient-key nor"),
    "the fingerprint damaged": ("one", lambda at: at.patient_key_check.write_text("x"), "one", "is damaged"),
    "both lost": ("", lambda at: (remove(at.patient_key), remove(at.patient_key_check)), "", "neither .patient-key"),
}


@pytest.mark.parametrize("case", SECOND_KEYS)
def test_a_cache_has_one_key_of_patients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    before, befalls, now, words = SECOND_KEYS[case]
    layout = CacheLayout(tmp_path)
    monkeypatch.setenv("ANEURYSM_PATIENT_KEY", before)
    key = patient_secret(layout)
    assert key == (before.encode() or own_key(layout))
    volume(layout)
    assert patient_secret(layout) == key
    assert key_fault(layout) == ""
    befalls(layout)
    monkeypatch.setenv("ANEURYSM_PATIENT_KEY", now)
    files = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(PatientKeyError, match=words):
        patient_secret(layout)
    assert sorted(p.name for p in tmp_path.iterdir()) == files  # nothing is made that would make it worse


def test_the_same_key_serves_from_the_environment_and_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = CacheLayout(tmp_path)
    monkeypatch.delenv("ANEURYSM_PATIENT_KEY", raising=False)
    key = patient_secret(layout)
    volume(layout)
    monkeypatch.setenv("ANEURYSM_PATIENT_KEY", key.decode() + "\n")
    assert patient_secret(layout) == key
    # A lost fingerprint follows from the cache's own key, and from no other.
    layout.patient_key_check.unlink()
    monkeypatch.setenv("ANEURYSM_PATIENT_KEY", "two")
    with pytest.raises(PatientKeyError, match="another key"):
        patient_secret(layout)
    monkeypatch.delenv("ANEURYSM_PATIENT_KEY")
    assert patient_secret(layout) == key


def test_the_fingerprint_is_not_the_key_and_takes_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = CacheLayout(tmp_path)
    monkeypatch.setenv("ANEURYSM_PATIENT_KEY", "secret")
    patient_secret(layout)
    slow = hashlib.pbkdf2_hmac("sha256", b"secret", b"aneurysm patient_key", 20_000)
    assert layout.patient_key_check.read_text() == slow.hex()[:32] + "\n"


def test_another_key_is_refused_by_every_command_that_builds_and_found_by_verify(built: Built, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(built.cache, cache)
    other = environment(ANEURYSM_PATIENT_KEY="two")
    before = tree_digest(cache)
    ran = call_in_process("precache", "--data", built.data, "--cache", cache, "--overwrite", env=other)
    assert ran.code == 2, ran.text
    assert "was begun with another key" in ran.err
    assert tree_digest(cache) == before
    ran = call_in_process("verify", "--cache", cache, env=other)
    assert ran.code == 3
    assert ".patient-key-check: " in ran.out
    assert "one patient would have two keys" in ran.out
    layout = CacheLayout(cache)
    assert key_fault(layout) == ""
    layout.patient_key_check.unlink()
    assert ".patient-key-check is missing" in key_fault(layout)


@pytest.mark.parametrize("command", ["verify", "manifest", "info"])
@pytest.mark.parametrize("kind", ["a file", "a spec that is no text", "a spec that can't be read"])
def test_what_is_no_cache_is_told(tmp_path: Path, command: str, kind: str) -> None:
    cache = tmp_path / "cache"
    if kind == "a file":
        cache.touch()
    elif kind == "a spec that is no text":
        cache.mkdir()
        (cache / "spec.toml").write_bytes(b"\xff\xfe")
    else:
        (cache / "spec.toml").mkdir(parents=True)
    ran = call_in_process(command, "--cache", cache)
    assert ran.code == 3
    assert str(cache) in ran.err


@pytest.mark.parametrize("command", ["verify", "manifest"])
def test_no_workers_are_refused(built: Built, command: str) -> None:
    assert call_in_process(command, "--cache", built.cache, "--workers", 0).code == 2


def test_an_error_of_the_operating_system_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/data/odd")

    monkeypatch.setattr(finish, "merge", fail)
    ran = call_in_process("manifest")
    assert ran.code == 1
    assert ran.err == "aneurysm: /data/odd: Input/output error\n"


def test_a_cache_whose_volumes_lie_as_they_did_is_refused_by_all_that_read_or_write_it(
    built: Built, tmp_path: Path
) -> None:
    cache = shutil.copytree(built.cache, tmp_path / "cache")
    for uid in built.uids:
        volume_path(cache, uid).rename(cache / "volumes" / f"{uid}.zarr")
    before = tree_digest(cache / "volumes")
    for command in ("precache", "manifest", "verify", "info"):
        options = ("--data", built.data) if command == "precache" else ()
        ran = call_in_process(command, "--cache", cache, *options)
        assert ran.code == 3, ran.text
        assert f"{cache} is of cache format 3 or older: its volumes are directly in volumes/. Build it again" in ran.err
    with pytest.raises(CacheError, match="format 3 or older"):
        open_cache(cache)
    assert tree_digest(cache / "volumes") == before


def test_volumes_without_a_spec_are_nobodys(built: Built, tmp_path: Path) -> None:
    shutil.copytree(built.cache / "volumes", tmp_path / "volumes")
    with pytest.raises(CacheError, match=r"no spec\.toml"):
        prepare_cache(CacheLayout(tmp_path), load_spec("rsna-1mm"))
