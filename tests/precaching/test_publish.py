"""Claims and renames: who may build a series, and what is left when somebody dies."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
import time

import pytest

from aneurysm.cache.layout import CacheLayout
from aneurysm.precaching.publish import abandoned, claim, publish, sweep
from aneurysm.processes.children import Child, Limits, LostError
from aneurysm.processes.files import is_disk_full, write_atomically
from aneurysm.processes.locks import one_at_a_time


def _hold(root, ready, uid="1.2"):
    with claim(CacheLayout(root), uid) as folder:
        (folder / "half-done").write_text("x")
        ready.set()
        signal.pause()


@pytest.fixture
def holder(tmp_path):
    """Start another process that holds the claim on 1.2."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(60)
    yield process
    process.kill()
    process.join()


def test_a_series_that_another_process_builds_is_left_alone(tmp_path, holder):
    layout = CacheLayout(tmp_path)
    with claim(layout, "1.2") as folder:
        assert folder is None
    assert sweep(layout) == []
    assert abandoned(layout) == []
    assert len(list(layout.building.glob("1.2@*/half-done"))) == 1


def test_work_of_a_killed_process_is_known_and_swept(tmp_path, holder):
    layout = CacheLayout(tmp_path)
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert abandoned(layout) == ["1.2"]
    assert sweep(layout) == ["1.2"]
    assert not layout.building.exists()


def test_a_claim_has_a_folder_of_its_own_and_leaves_none(tmp_path):
    layout = CacheLayout(tmp_path)
    with claim(layout, "1.2") as folder:
        assert folder is not None
        assert list(folder.iterdir()) == []
        with claim(layout, "1.2") as second:
            assert second is None
        (folder / "half-done").touch()
    assert list(layout.building.iterdir()) == []


@pytest.mark.parametrize("error", [None, errno.ENOSYS, errno.EOPNOTSUPP], ids=["node-local", "none", "refused"])
def test_where_locks_do_not_reach_other_nodes_nobody_harms_anybody(tmp_path, holder, monkeypatch, error):
    """The holder builds on another node, whose locks are not seen here; see BeeGFS, or Lustre with localflock."""

    def flock(_file, _how):
        if error:
            raise OSError(error, os.strerror(error))

    layout = CacheLayout(tmp_path)
    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr("aneurysm.precaching.publish._NODE", "another")
    (theirs,) = layout.building.glob("1.2@*/half-done")
    assert sweep(layout) == []
    assert abandoned(layout) == []
    with claim(layout, "1.2") as folder:
        assert folder is not None
        assert folder != theirs.parent
    assert theirs.exists()
    long_ago = time.time() - 24 * 3600
    os.utime(theirs.parent, (long_ago, long_ago))
    assert abandoned(layout) == ["1.2"]
    assert sweep(layout) == ["1.2"]
    assert not theirs.exists()


def test_a_clock_that_jumps_back_changes_nothing(tmp_path, holder, monkeypatch):
    """As when a node that was ahead gets the right time: what is there seems to be of the future."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 3600)
    layout = CacheLayout(tmp_path)
    theirs = layout.building / "1.3@another~01234567"
    theirs.mkdir()
    with claim(layout, "1.2") as folder:
        assert folder is None
    assert abandoned(layout) == sweep(layout) == []
    write_atomically(tmp_path / "x", "one")
    write_atomically(tmp_path / "x", "two")
    assert (tmp_path / "x").read_text() == "two"
    started = time.monotonic()
    with pytest.raises(LostError, match=r"not done after 0\.2 s"):
        Child().run(time.sleep, 60, limits=Limits(0.2))
    with (tmp_path / "x").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with one_at_a_time(tmp_path / "x", patience_s=0.2):
            assert time.monotonic() - started < 30
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert abandoned(layout) == sweep(layout) == ["1.2"]
    assert theirs.exists()


def test_what_an_older_version_left_is_swept(tmp_path):
    layout = CacheLayout(tmp_path)
    (layout.building / "1.2").mkdir(parents=True)
    (layout.building / "1.2.lock").touch()
    assert sweep(layout) == ["1.2"]
    assert not layout.building.exists()


def test_the_first_to_publish_wins(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
    final = tmp_path / "volumes" / "v"
    assert publish(tmp_path / "a", final)
    assert not publish(tmp_path / "b", final)
    assert (final / "content").read_text() == "a"


def test_what_is_replaced_is_there_until_the_new_one_is_on_the_disk(tmp_path, monkeypatch):
    """To flush takes a while, in which others read."""
    final, layout, seen = tmp_path / "volumes" / "v", CacheLayout(tmp_path), []
    for folder, text in ((final, "old"), (tmp_path / "new", "new")):
        folder.mkdir(parents=True)
        (folder / "content").write_text(text)
    monkeypatch.setattr(
        "aneurysm.precaching.publish.flush_tree", lambda _: seen.append((final / "content").read_text())
    )
    with claim(layout, "v") as folder:
        assert publish(tmp_path / "new", final, folder)
        assert [path.read_text() for path in folder.glob("replaced-*/content")] == ["old"]
    assert seen == ["old"]
    assert (final / "content").read_text() == "new"
    assert abandoned(layout) == sweep(layout) == abandoned(layout) == []


def test_an_atomic_write_leaves_nothing_beside_the_file(tmp_path):
    write_atomically(tmp_path / "sub" / "x", "one")
    write_atomically(tmp_path / "sub" / "x", "two")
    assert (tmp_path / "sub" / "x").read_text() == "two"
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["x"]


def test_a_full_disk_is_known_through_a_chain_of_errors():
    error = RuntimeError("could not write the chunk")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert is_disk_full(error)
    assert not is_disk_full(OSError(errno.EACCES, "Permission denied"))
