"""One cache, several users: a set-group-ID folder works with any umask, and any other says what to set."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from aneurysm.precaching.verify import verify
from aneurysm.processes.locks import is_locked, take_lock
from tests.support.built import Built
from tests.support.cache_paths import volume_name, volume_paths
from tests.support.cache_state import leftovers, manifest, same_cache
from tests.support.users import GROUP, User


def first(umask: int) -> User:
    return User(54001, umask)


def second(umask: int) -> User:
    return User(54002, umask)


@pytest.fixture
def data(folder: Path, built: Built) -> Path:
    """The small series, readable by all."""
    copy = folder.parent / "data"
    shutil.copytree(built.data, copy)
    for path in (copy, *copy.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return copy


def modes(cache: Path) -> dict[str, tuple[int, int]]:
    """The group and the group's permissions of all that is in a cache."""
    found = [cache, *cache.rglob("*")]
    return {p.relative_to(cache).as_posix(): (p.stat().st_gid, stat.S_IMODE(p.stat().st_mode) & 0o2070) for p in found}


@pytest.mark.slow
@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077], ids=oct)
def test_a_cache_in_a_shared_folder_is_built_by_two_users(folder: Path, data: Path, built: Built, umask: int) -> None:
    cache = folder / "cache"
    cache.mkdir()
    os.chown(cache, 54001, GROUP)
    cache.chmod(0o2775)
    ran = first(umask).precache(data, cache, "--limit", 2)
    assert ran.code == 0, ran.text
    ran = second(umask).precache(data, cache)
    assert ran.code == 0, ran.text
    assert same_cache(cache, built.cache) == []
    assert leftovers(cache) == []
    assert {p.stat().st_uid for p in volume_paths(cache)} == {54001, 54002}
    for name, (group, mode) in modes(cache).items():
        assert group == GROUP, name
        assert mode == (0o2070 if (cache / name).is_dir() else 0o060), name
    # Each may also replace what the other made.
    ran = first(umask).precache(data, cache, "--overwrite", "--series", *built.uids)
    assert ran.code == 0, ran.text
    assert {p.stat().st_uid for p in volume_paths(cache)} == {54001}
    assert same_cache(cache, built.cache) == []


@pytest.mark.slow
@pytest.mark.parametrize("umask", [0o002, 0o077], ids=oct)
def test_the_key_that_the_first_user_made_serves_the_second(
    folder: Path, data: Path, umask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANEURYSM_PATIENT_KEY")
    cache = folder / "cache"
    cache.mkdir()
    os.chown(cache, 54001, GROUP)
    cache.chmod(0o2770)
    assert first(umask).precache(data, cache, "--limit", 2, key="").code == 0
    assert stat.S_IMODE((cache / ".patient-key").stat().st_mode) == 0o660
    ran = second(umask).precache(data, cache, key="")
    assert ran.code == 0, ran.text
    assert len(manifest(cache)) == 4
    assert verify(cache).faults == []


@pytest.mark.slow
@pytest.mark.parametrize("umask", [0o077, 0o027, 0o022, 0o002], ids=oct)
def test_one_user_alone_builds_with_any_umask_which_counts(
    folder: Path, data: Path, built: Built, umask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANEURYSM_PATIENT_KEY")
    home = folder.parent / "home"
    home.mkdir()
    os.chown(home, 54001, 54001)
    cache = home / "cache"
    for more in (("--limit", 2), ()):
        ran = first(umask).precache(data, cache, *more, key="")
        assert ran.code == 0, ran.text
    assert leftovers(cache) == []
    assert verify(cache, deep=True).faults == []
    for name in (
        "",
        "spec.toml",
        "manifest.csv",
        f"{volume_name(built.uids[0])}",
        f"{volume_name(built.uids[0])}/zarr.json",
    ):
        mode = stat.S_IMODE((cache / name).stat().st_mode)
        assert mode & umask == 0, name
    assert stat.S_IMODE((cache / ".patient-key").stat().st_mode) == 0o600


@pytest.mark.slow
@pytest.mark.parametrize("umask", [0o077, 0o027, 0o022], ids=oct)
def test_a_cache_that_is_not_shared_says_to_the_second_user_what_to_set(folder: Path, data: Path, umask: int) -> None:
    cache = folder / "cache"
    assert first(umask).precache(data, cache, "--limit", 2).code == 0
    ran = second(umask).precache(data, cache)
    assert ran.code in (2, 3)
    assert "Traceback" not in ran.text
    assert f"{cache}" in ran.err
    assert "belongs to user 54001" in ran.err
    assert "this is user 54002" in ran.err
    assert "chmod g+s" in ran.err
    # What it says helps.
    for command in (["chgrp", "-R", str(GROUP)], ["chmod", "-R", "g+rwX"]):
        subprocess.run([*command, cache], check=True)
    subprocess.run(["find", cache, "-type", "d", "-exec", "chmod", "g+s", "{}", "+"], check=True)
    ran = second(umask).precache(data, cache)
    assert ran.code == 0, ran.text
    assert len(manifest(cache)) == 4


def test_whoever_may_write_to_a_folder_takes_its_locks(folder: Path) -> None:
    """Also those that a user left in it whose umask hides all that he makes, and while he has them not."""
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom aneurysm.processes.locks import take_lock\n"
        "lock = take_lock(Path(sys.argv[1]))\nprint('taken' if lock is not None else 'busy')"
    )
    path = folder / ".x.lock"
    for user in (first(0o077), second(0o077)):
        ran = user.run("-c", code, path)
        assert ran.out == "taken\n", ran.err
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    held = take_lock(path)
    assert held is not None
    assert second(0o077).run("-c", code, path).out == "busy\n"
    os.close(held)
    # One that was made by other means, which can only be read.
    path.chmod(0o644)
    assert second(0o077).run("-c", code, path).out == "taken\n"
    path.chmod(0o600)
    ran = second(0o077).run("-c", code, path)
    assert "PermissionError" in ran.err
    assert not is_locked(path)


def test_arrays_are_written_by_two_users(folder: Path) -> None:
    code = (
        "import sys, numpy as np\nfrom aneurysm.precaching.array_writer import CacheWriter\n"
        "with CacheWriter(sys.argv[1]) as writer:\n"
        "    writer.add(sys.argv[2], np.zeros((9, 9, 9), np.uint8), patient='one')"
    )
    for user, uid in ((first(0o077), "a"), (second(0o077), "b"), (first(0o022), "c")):
        ran = user.run("-c", code, folder, uid, key="")
        assert ran.code == 0, ran.text
    keys = {row["patient_key"] for row in manifest(folder).values()}
    assert len(manifest(folder)) == 3
    assert len(keys) == 1
