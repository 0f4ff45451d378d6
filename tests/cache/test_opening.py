"""What is opened as a cache: one of the right spec, whose files can be read; and which commands say what of others."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

import pytest

from aneurysm.cache import merge, publish
from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.opening import open_cache, patient_secret, read_spec
from aneurysm.cache.publish import write_once
from aneurysm.cache.spec import load_spec
from aneurysm.errors import CacheError, SpecMismatchError
from tests.cache.conftest import Built
from tests.support.command import call_cli


def write_meanwhile(monkeypatch: pytest.MonkeyPatch, path: Path, content: str) -> None:
    """Another run writes ``path`` after this one saw that it was not there, and before it has written its own."""
    monkeypatch.setattr(publish, "lock_file", lambda *_, **__: path.write_text(content))


def test_of_two_first_runs_with_different_specs_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = CacheLayout(tmp_path)
    write_meanwhile(monkeypatch, layout.spec, load_spec("rsna-1mm-u8").to_toml())
    with pytest.raises(SpecMismatchError, match="rsna-1mm-u8"):
        open_cache(layout, load_spec("rsna-1mm"))
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
    ran = call_cli(command, "--cache", cache)
    assert ran.code == 3
    assert str(cache) in ran.err


@pytest.mark.parametrize("command", ["verify", "manifest"])
def test_no_workers_are_refused(built: Built, command: str) -> None:
    assert call_cli(command, "--cache", built.cache, "--workers", 0).code == 2


def test_an_error_of_the_operating_system_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/data/odd")

    monkeypatch.setattr(merge, "merge", fail)
    ran = call_cli("manifest")
    assert ran.code == 1
    assert ran.err == "aneurysm: /data/odd: Input/output error\n"


def test_volumes_without_a_spec_are_nobodys(built: Built, tmp_path: Path) -> None:
    shutil.copytree(built.cache / "volumes", tmp_path / "volumes")
    with pytest.raises(CacheError, match=r"no spec\.toml"):
        open_cache(CacheLayout(tmp_path), load_spec("rsna-1mm"))
