"""The free space is checked before a run, in units in which the two sizes can be told apart."""

from __future__ import annotations

import re
import shutil
from types import SimpleNamespace

import pytest

from aneurysm.errors import NoSpaceError
from aneurysm.precaching import disk_space
from aneurysm.precaching.disk_space import check_space
from aneurysm.processes.children import InProcess
from aneurysm.rawdata.folder import find_series
from aneurysm.spec import load_spec
from tests.support.run_data import write_rsna_data


@pytest.mark.parametrize("lacking", [1, 2**14, 16 * 2**20])
def test_a_small_need_is_no_zero(tmp_path, monkeypatch, lacking):
    write_rsna_data(tmp_path, n_series=1)
    todo, spec = find_series(tmp_path).sources, load_spec("rsna-1mm")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**40))
    needed = check_space(todo, spec, tmp_path, InProcess())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - lacking))
    with pytest.raises(NoSpaceError) as refused:
        check_space(todo, spec, tmp_path, InProcess())
    need, has = re.findall(r"([\d.]+ (?:bytes|[KMG]iB)) (?:in|are)", str(refused.value))
    assert need != has
    assert float(need.split()[0]) > 0


def test_an_unforeseen_error_in_one_series_does_not_end_the_run(tmp_path, monkeypatch):
    write_rsna_data(tmp_path, n_series=2)
    todo, spec = find_series(tmp_path).sources, load_spec("rsna-1mm")
    one = check_space(todo[1:], spec, tmp_path, InProcess()) - disk_space._SPARE
    read = disk_space.read_source_headers

    def fail(source):
        if source.uid == todo[0].uid:
            raise KeyError("unforeseen")
        return read(source)

    monkeypatch.setattr(disk_space, "read_source_headers", fail)
    assert check_space(todo, spec, tmp_path, InProcess()) == pytest.approx(2 * one + disk_space._SPARE, abs=2)
