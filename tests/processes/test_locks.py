"""Locks on files: who gets one, who waits, and what holds where there are none."""

from __future__ import annotations

import errno
import fcntl
import os
import threading

import pytest

from aneurysm.errors import UsageError
from aneurysm.processes.locks import is_locked, locked, one_at_a_time, take_lock


@pytest.fixture
def without_locks(monkeypatch):
    def flock(_file, _how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_lock_is_one_process_at_a_time(tmp_path):
    path = tmp_path / "new" / "x.lock"
    assert not is_locked(path)
    first = take_lock(path)
    assert first is not None
    assert take_lock(path) is None  # flock holds between descriptors as between processes
    assert is_locked(path)
    os.close(first)
    assert not is_locked(path)


def test_who_waited_on_a_removed_file_takes_the_one_at_the_path(tmp_path):
    path, order = tmp_path / "x.lock", []

    def second():
        with locked(path):
            order.append("second")
            assert path.exists()

    with locked(path):
        waits = threading.Thread(target=second)
        waits.start()
        waits.join(0.3)
        order.append("first")
    waits.join(30)
    assert order == ["first", "second"]
    assert not path.exists()


def test_a_lock_that_is_kept_leaves_its_file(tmp_path):
    with locked(tmp_path / "x.lock", keep=True):
        assert is_locked(tmp_path / "x.lock")
    assert (tmp_path / "x.lock").exists()
    assert not is_locked(tmp_path / "x.lock")


def test_where_there_are_no_locks_everybody_gets_one(tmp_path, without_locks):
    path = tmp_path / "x.lock"
    assert take_lock(path) is not None
    assert take_lock(path) is not None
    with one_at_a_time(path), one_at_a_time(path):
        pass


def test_what_is_not_safe_without_locks_is_refused_without_them(tmp_path, without_locks):
    """Copies of volumes and scratch folders: the work of the living would be swept."""
    with pytest.raises(UsageError, match="no file locks: name a folder on a local disk"), locked(tmp_path / "x.lock"):
        raise AssertionError("got it")


def test_patience_has_an_end(tmp_path):
    path = tmp_path / "x"
    path.touch()
    held = take_lock(path)
    with one_at_a_time(path, patience_s=0.1):
        assert is_locked(path)  # by the other, still
    os.close(held)
