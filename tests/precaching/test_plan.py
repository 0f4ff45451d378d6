"""A plan says of each series what a scan would; it is written whole, the same twice, and read with mistrust."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aneurysm.errors import PlanError, Reason, UsageError
from aneurysm.labels import LABELS, SITES
from aneurysm.precaching.partition import deal
from aneurysm.precaching.plan import (
    Plan,
    PlanDocument,
    PlannedSeries,
    _Line,
    _line_of,
    _parsed,
    _series_of,
    others_of,
    read_plan,
    write_plan,
)
from aneurysm.precaching.plan_folder import plan_folder
from aneurysm.rawdata.bucket import BucketSource
from aneurysm.rawdata.facts import SeriesFacts
from aneurysm.rawdata.fingerprint import DataFingerprint
from aneurysm.rawdata.folder import SeriesSource
from aneurysm.rawdata.tables import Localizer, SeriesNotes
from aneurysm.spec import load_spec

DATA = "/data/set"
URL = "s3://bucket/set"

# Bytes: names of files need not be UTF-8, nor printable.
names = (
    st.binary(min_size=1, max_size=12)
    .filter(lambda name: not set(name) & {0, ord("/")} and name not in (b".", b".."))
    .map(os.fsdecode)
)
texts = st.text(min_size=1, max_size=12).filter(lambda name: not set(name) & {"\0", "/"} and name not in (".", ".."))
uids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True).filter(lambda uid: not uid.endswith("."))
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
object_names = st.lists(texts, min_size=1, max_size=3).map("/".join)
counts = st.integers(0, 2**40)
facts = st.builds(SeriesFacts, counts, counts, counts, counts, st.sampled_from(["", "1.2.840.10008.1.2.1"]))
localizers = st.builds(
    Localizer,
    st.integers(1, 10**6),
    uids,
    uids,
    st.sampled_from(SITES),
    st.floats(-1e6, 1e6),
    st.floats(-1e6, 1e6),
    st.none() | st.integers(0, 1000),
)
notes = st.builds(
    SeriesNotes,
    st.sampled_from(["", "CTA"]),
    st.none() | st.dictionaries(st.sampled_from(LABELS), st.integers(0, 1)),
    st.lists(localizers, max_size=3).map(tuple),
)
lost = st.none() | st.tuples(st.sampled_from(Reason), st.text(max_size=20))
folders = st.builds(SeriesSource, uids, paths.map(lambda p: Path(DATA, p)), st.just(()), st.text(max_size=9), lost)
files = st.builds(
    SeriesSource,
    uids,
    st.none(),
    st.lists(paths.map(lambda p: f"{DATA}/{p}"), max_size=4).map(tuple),
    st.just(""),
    lost,
)
keys = st.lists(st.tuples(object_names, counts), min_size=1, max_size=4)
objects = keys.flatmap(
    lambda pairs: st.builds(
        BucketSource,
        uids,
        url=st.just(URL),
        keys=st.just(tuple(key for key, _ in pairs)),
        sizes=st.just(tuple(size for _, size in pairs)),
    )
)
prefixes = st.builds(BucketSource, uids, url=st.just(URL), prefix=object_names)


def planned_of(sources: st.SearchStrategy[Any], masks: st.SearchStrategy[Any]) -> st.SearchStrategy[PlannedSeries]:
    return st.builds(PlannedSeries, sources, notes, st.none() | masks, facts, st.floats(0, 1e6))


@settings(deadline=None)
@given(
    planned_of(folders | files, paths.map(lambda p: Path(DATA, p))).map(lambda p: (p, DATA))
    | planned_of(objects | prefixes, object_names.map(lambda p: f"{URL}/{p}")).map(lambda p: (p, URL))
)
def test_a_line_holds_all_that_is_known_of_a_series(pair: tuple[PlannedSeries, str]) -> None:
    planned, data = pair
    line = _line_of(planned, data)
    assert line.endswith("\n")
    assert line.count("\n") == 1
    line.encode("ascii")
    assert _series_of(_parsed(_Line, line.encode()), data) == planned


def test_labels_come_back_in_their_order() -> None:
    """It is that of a volume's bytes, and equality of dictionaries does not see it."""
    labels = dict.fromkeys(LABELS, 0) | {LABELS[3]: 1}
    planned = PlannedSeries(SeriesSource("1.2", Path(DATA, "a")), SeriesNotes("", labels), None, SeriesFacts())
    again = _series_of(_parsed(_Line, _line_of(planned, DATA).encode()), DATA).notes.labels
    assert again is not None
    assert list(again.items()) == list(labels.items())


def test_a_localizer_without_a_point_stays_one() -> None:
    row = Localizer(3, "1.2", "1.2.3", "nowhere", problem="'nowhere' is none of the 13 sites")
    planned = PlannedSeries(SeriesSource("1.2", Path(DATA, "a")), SeriesNotes("", None, (row,)), None, SeriesFacts())
    (again,) = _series_of(_parsed(_Line, _line_of(planned, DATA).encode()), DATA).notes.localizers
    assert (again.row, again.problem, again.x != again.x) == (3, row.problem, True)


def series(uid: str, seconds: float, size: int = 1000) -> PlannedSeries:
    source = SeriesSource(uid, Path(DATA, "series", uid))
    return PlannedSeries(source, SeriesNotes(), None, SeriesFacts(3, size), seconds)


SERIES = [series(f"1.{i}", seconds=float(i), size=1000 * i) for i in range(1, 10)]


def about() -> PlanDocument:
    spec = load_spec("rsna-1mm")
    return PlanDocument(
        data=DATA, layout="rsna", cache="/cache", spec=spec.to_toml(), spec_name=spec.name, digest=spec.digest,
        recipe=3, series=12, done=3, not_cached=1, retry_failed=False, overwrite=False, has_labels=True,
        fingerprint=DataFingerprint(top_level="0", tables={}), parts=[],
    )  # fmt: skip


def dealt(count: int) -> list[list[PlannedSeries]]:
    return [[SERIES[i] for i in part] for part in deal(np.array([one.seconds for one in SERIES]), count)]


def written(where: Path | str, count: int = 3, once: bool = False) -> Plan:
    return write_plan(plan_folder(where), about(), dealt(count), once=once)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_plan_comes_back_as_it_was_and_twice_the_same(tmp_path: Path) -> None:
    plan = written(tmp_path / "plan")
    again = read_plan(plan_folder(tmp_path / "plan" / "plan.json"))
    assert again.document == plan.document
    assert [again.part(i) for i in range(3)] == dealt(3)
    assert again.spec() == load_spec("rsna-1mm")
    document = again.document
    assert (document.missing, document.bytes, document.seconds) == (9, 45_000, 45.0)
    assert [part.seconds for part in document.parts] == [16.0, 15.0, 14.0]
    assert [p.seconds for p in again.part(0)] == sorted((p.seconds for p in again.part(0)), reverse=True)
    assert {p.source.uid for p in others_of(again, 1)} == {p.source.uid for i in (0, 2) for p in again.part(i)}
    written(tmp_path / "other")
    assert tree(tmp_path / "other") == tree(tmp_path / "plan")


def test_a_plan_is_its_owner_s_and_in_a_shared_folder_the_group_s(tmp_path: Path) -> None:
    written(tmp_path / "own")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o2775)
    written(tmp_path / "shared" / "plan")
    for folder, mode in ((tmp_path / "own", 0o600), (tmp_path / "shared" / "plan", 0o660)):
        modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
        assert modes == {mode}, folder


def test_another_plan_takes_its_place_as_a_whole(tmp_path: Path) -> None:
    written(tmp_path / "plan", 5)
    (tmp_path / "plan" / "000007-0123456789abcdef.part").touch()  # of one that was killed before there was a plan
    plan = written(tmp_path / "plan", 2)
    assert set(tree(tmp_path / "plan")) == {"plan.json", *(part.name for part in plan.document.parts)}
    assert plan.count == 2


def test_of_two_that_write_once_the_first_counts(tmp_path: Path) -> None:
    first = written(tmp_path / "plan", 2, once=True)
    second = written(tmp_path / "plan", 3, once=True)
    assert second.document == first.document
    assert set(tree(tmp_path / "plan")) == {"plan.json", *(part.name for part in first.document.parts)}


def test_without_its_document_there_is_no_plan(tmp_path: Path) -> None:
    written(tmp_path / "plan")
    (tmp_path / "plan" / "plan.json").unlink()
    with pytest.raises(PlanError, match="there is no plan at"):
        read_plan(plan_folder(tmp_path / "plan"))
    (tmp_path / "file").touch()
    with pytest.raises(PlanError, match="it is a file"):
        read_plan(plan_folder(tmp_path / "file"))


@pytest.mark.parametrize(
    "content, problem",
    [
        ("{", "Expecting"),
        ("[" * 100_000, "nested too deep"),
        ("{}", "key data is missing"),
        ('{"format_version": 2}', "format_version"),
        ("null", "plan.json"),
    ],
)
def test_what_is_no_document_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(PlanError, match=problem):
        read_plan(plan_folder(tmp_path))


def harmed(folder: Path, index: int, change: Callable[[dict[str, Any]], None]) -> Plan:
    """A plan with one line changed by somebody who sets the hash right."""
    plan = written(folder, 1)
    (entry,) = plan.document.parts
    lines = (folder / entry.name).read_text().splitlines()
    line = json.loads(lines[index])
    change(line)
    lines[index] = json.dumps(line)
    content = "".join(f"{text}\n" for text in lines).encode()
    (folder / entry.name).write_bytes(content)
    document = json.loads((folder / "plan.json").read_bytes())
    document["parts"][0]["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "plan.json").write_text(json.dumps(document))
    return read_plan(plan_folder(folder))


@pytest.mark.parametrize(
    "change",
    [
        {"uid": "../../etc"},
        {"uid": ".hidden"},
        {"folder": "../elsewhere"},
        {"folder": "/etc"},
        {"folder": "%2e%2e/elsewhere"},
        {"folder": "a%00b"},
        {"folder": "a//b"},
        {"folder": ""},
        {"folder": None},
        {"files": ["x"]},
        {"mask": "../mask.nii"},
        {"bytes": -1},
        {"bytes": 1e400},
        {"seconds": float("nan")},
        {"lost": ["no_such_reason", "x"]},
        {"lost": ["no_files"]},
        {"more": 1},
        {"labels": "x"},
        {"labels": [0]},
        {"labels": [2] * 14},
    ],
    ids=str,
)
def test_a_line_that_no_plan_of_ours_has_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    plan = harmed(tmp_path, 3, lambda line: line.update(change))
    with pytest.raises(PlanError, match=r"part 0 of .* was changed or damaged") as raised:
        plan.part(0)
    assert "elsewhere" not in str(raised.value)
    assert "/etc" not in str(raised.value)


def test_a_harmless_change_is_taken(tmp_path: Path) -> None:
    """Else the test above would show nothing."""
    assert harmed(tmp_path, 3, lambda line: line.update(frames=7)).part(0)[3].facts.frames == 7


def test_a_part_that_was_changed_or_is_gone_is_refused(tmp_path: Path) -> None:
    plan = written(tmp_path / "plan")
    path = tmp_path / "plan" / plan.document.parts[1].name
    content = path.read_bytes()
    for damage in (content[:-1], content + content, content.replace(b"1", b"2", 1), b"", b"\xff" * 100):
        path.write_bytes(damage)
        with pytest.raises(PlanError, match="changed or damaged"):
            plan.part(1)
    path.unlink()
    with pytest.raises(PlanError, match="is missing"):
        plan.part(1)
    assert plan.part(0)
    assert list(others_of(plan, 0)) == []


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UsageError, match="something else than a plan"):
        plan_folder(tmp_path).check()
    written(tmp_path / "plan")
    plan_folder(tmp_path / "plan").check()


def test_the_last_part_to_end_takes_the_plan_along(tmp_path: Path) -> None:
    plan = written(tmp_path / "runs" / "7" / "deal")
    for index in (2, 0, 2):
        plan.finish(index)
        assert (tmp_path / "runs" / "7" / "deal" / "plan.json").exists()
    plan.finish(1)
    assert list(tmp_path.rglob("*.part")) == []
    assert not (tmp_path / "runs" / "7" / "deal").exists()
