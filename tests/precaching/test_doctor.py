"""aneurysm doctor: what it finds on machines that are as they should be, and on others; it leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aneurysm.precaching.data_check import Needs, check_memory, check_room
from aneurysm.precaching.doctor import DoctorTiming, examine
from aneurysm.precaching.finding import Finding, State
from aneurysm.precaching.folder_check import by_mount, check_folder
from aneurysm.processes.children import InProcess
from aneurysm.processes.host import Mount
from tests.support.built import Built
from tests.support.cache_state import tree_digest
from tests.support.command import call_cli, environment
from tests.support.fake_host import HANGS, fake_host
from tests.support.s3 import Bucket

NFS = {"/proc/self/mounts": "server:/export / nfs4 rw,local_lock=none 0 0\n"}
QUICK = DoctorTiming(listen_s=0.1)


def by_check(findings: list[Finding]) -> dict[str, Finding]:
    found = {finding.check: finding for finding in findings}
    assert len(found) == len(findings), "a check that is there twice"
    return found


def states(findings: list[Finding], state: State) -> set[str]:
    return {finding.check for finding in findings if finding.state == state}


def looked(built: Built, cache: Path, **options: object) -> list[Finding]:
    return examine(built.data, cache, processes=InProcess(), timing=QUICK, **options)  # type: ignore[arg-type]


def test_where_all_is_well_nothing_is_found_and_nothing_left(built: Built, tmp_path: Path) -> None:
    before = tree_digest(built.cache), tree_digest(built.data)
    for cache in (built.cache, tmp_path / "a" / "new"):
        findings = looked(built, cache)
        assert not states(findings, State.ERROR) | states(findings, State.WARNING), findings
        assert {"versions", "decoders", "spec", "writing", "hard links", "free inodes", "memory"} <= set(
            by_check(findings)
        )
    assert "4 series, of which 4 are done" in by_check(looked(built, built.cache))["data"].found
    assert (tree_digest(built.cache), tree_digest(built.data)) == before
    assert not list(tmp_path.iterdir())


def test_the_command_is_a_table_or_json_and_says_so_by_its_exit_code(built: Built, tmp_path: Path) -> None:
    ran = call_cli("doctor", "--data", built.data, "--cache", built.cache, "--workers", 1)
    assert ran.code == 0, ran.text
    assert "what to do" in ran.out
    ran = call_cli("doctor", "--data", tmp_path / "nothing", "--cache", built.cache, "--workers", 1, "--json")
    assert ran.code == 2
    (error,) = [entry for entry in json.loads(ran.out)["findings"] if entry["state"] == "error"]
    assert error == {
        "check": "data",
        "state": "error",
        "found": f"there is no folder {tmp_path / 'nothing'}",
        "advice": "Name it with --data; is it mounted here?",
    }
    assert ran.err == "1 of 16 checks found an error.\n"


def test_a_mount_that_hangs_is_an_error_and_no_hang(built: Built, tmp_path: Path) -> None:
    hanging = fake_host({"/proc/self/mounts": HANGS})
    started = time.monotonic()
    findings = examine(built.data, tmp_path / "cache", host=hanging, timing=DoctorTiming(check_s=2.0))
    assert time.monotonic() - started < 90
    found = by_check(findings)
    assert found["writing"] == Finding(
        "writing", State.ERROR, "no answer within 2 s",
        "A dead mount, or a server that is overloaded? See whether `ls` answers there",
    )  # fmt: skip
    assert found["free bytes"].state == State.ERROR
    assert found["decoders"].state == State.OK


@pytest.mark.parametrize("problem", ["no permission", "a file", "another spec", "another recipe", "no data in it"])
def test_what_keeps_a_run_from_working_is_an_error(built: Built, tmp_path: Path, problem: str) -> None:
    cache, data, spec = tmp_path / "cache", built.data, "rsna-1mm"
    check, words = "spec", ""
    match problem:
        case "no permission":
            if os.geteuid() == 0:
                pytest.skip("root may write everywhere")
            cache.mkdir(mode=0o500)
            check, words = "writing", "Permission denied"
        case "a file":
            cache.touch()
            check, words = "writing", "is a file"
        case "another spec":
            shutil.copytree(built.cache, cache)
            spec, words = "rsna-1mm-u8", "the cache is of rsna-1mm, digest bc29c31f3f6626eb"
        case "another recipe":
            shutil.copytree(built.cache, cache)
            path = cache / "spec.toml"
            path.write_text(path.read_text().replace("recipe = 3\n", "recipe = 2\n"))
            words = "of the cache: it is of recipe 2"
        case "no data in it":
            data = tmp_path / "data"
            data.mkdir()
            check, words = "data", "is an empty folder"
    finding = by_check(looked(Built(data, cache, []), cache, spec=spec))[check]
    assert finding.state == State.ERROR, finding
    assert words in finding.found


def nfs(**options: str) -> Mount:
    return Mount("/cache", "nfs4", options, "server:/export")


@pytest.mark.parametrize(
    "mount, state",
    [
        (nfs(nolock=""), State.WARNING),
        (nfs(local_lock="all"), State.WARNING),
        (nfs(local_lock="none"), State.UNKNOWN),
        (Mount("/", "lustre", {"flock": ""}, "m"), State.UNKNOWN),
        (Mount("/", "lustre", {"localflock": ""}, "m"), State.WARNING),
        (Mount("/", "lustre", {}, "m"), State.WARNING),
        (Mount("/", "beegfs", {}, "m"), State.UNKNOWN),
        (Mount("/", "cifs", {"nobrl": ""}, "m"), State.WARNING),
        (Mount("/", "ext4", {}, "m"), State.OK),
        (None, State.UNKNOWN),
    ],
)
def test_how_far_locks_reach_by_the_mount(mount: Mount | None, state: State) -> None:
    finding = by_mount(mount)
    assert finding.state == state
    assert bool(finding.advice) == (state != State.OK)


def across(cache: Path, node: str, listen_s: float = 1.5) -> Finding:
    return by_check(check_folder(cache, fake_host(NFS), listen_s, node))["locks across hosts"]


def test_doctors_on_two_hosts_at_once_see_whether_their_locks_do(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda node: across(tmp_path, node), ("n1", "n2"))
    assert (one.state, one.found) == (State.OK, "locks of n2 are seen here")
    assert (two.state, two.found) == (State.OK, "locks of n1 are seen here")
    assert not list(tmp_path.iterdir())


def test_a_lock_of_another_host_that_is_not_seen_is_told(tmp_path: Path) -> None:
    ended, theirs = threading.Event(), tmp_path / ".aneurysm-doctor" / "n2~0a.lock"
    theirs.parent.mkdir()
    theirs.touch()

    def live_on() -> None:
        while not ended.wait(0.1):
            theirs.touch()

    other = threading.Thread(target=live_on)
    other.start()
    finding = across(tmp_path, "n1")
    ended.set()
    other.join()
    assert (finding.state, finding.found) == (State.WARNING, "locks of n2 are not seen here")
    assert [p.name for p in tmp_path.rglob("*")] == [".aneurysm-doctor", "n2~0a.lock"], "the other one's is left"


def test_what_a_killed_doctor_left_is_swept_by_the_next_one_on_its_host(tmp_path: Path) -> None:
    room = tmp_path / ".aneurysm-doctor"
    for node in ("n1", "n2"):
        (room / f"{node}~0a").mkdir(parents=True)
        (room / f"{node}~0a.lock").touch()
    os.utime(room / "n2~0a.lock", (1, 1))
    assert across(tmp_path, "n1", 0.1).state == State.UNKNOWN
    assert not list(tmp_path.iterdir())


def test_a_folder_of_a_group_wants_its_bit(tmp_path: Path) -> None:
    for mode, state in ((0o755, State.OK), (0o775, State.WARNING), (0o2775, State.OK)):
        tmp_path.chmod(mode)
        assert by_check(check_folder(tmp_path, fake_host(NFS), 0.0))["sharing"].state == state


def test_room_is_compared_with_what_is_needed(tmp_path: Path) -> None:
    quota = "server:/export 1000 2000 0 0 10 20 0 0\n"
    few, many = Needs(1, 1, 1000, 8, 1), Needs(9, 9, 2**62, 2**40, 1)
    for needs, state in ((few, State.OK), (many, State.ERROR), (None, State.UNKNOWN)):
        found = by_check(check_room(tmp_path / "new", needs, fake_host(NFS, tools={"quota": quota})))
        assert {f.state for f in found.values()} == {state}, found
        assert set(found) == {"free bytes", "free inodes", "quota", "quota of files"}
    assert by_check(check_room(tmp_path, few, fake_host(NFS)))["quota"].state == State.UNKNOWN


@pytest.mark.parametrize(
    "workers, memory_mb, largest, state",
    [
        (4, 2000, 10**9, State.OK),
        (9, 2000, 10**9, State.WARNING),
        (4, 500, 10**9, State.WARNING),
        (1, None, 10**11, State.ERROR),
        (1, None, 10**9, State.OK),
        (20, None, 10**9, State.WARNING),
        (1, None, None, State.UNKNOWN),
    ],
)
def test_memory_is_compared_with_the_largest_series(
    workers: int, memory_mb: int | None, largest: int | None, state: State
) -> None:
    host = fake_host({"/proc/meminfo": "MemTotal: 16000000 kB\n"})
    needs = None if largest is None else Needs(1, 1, 1, 1, largest)
    finding = check_memory(workers, memory_mb, needs, host)
    assert finding.state == state
    assert check_memory(workers, memory_mb, needs, fake_host({})).state == State.UNKNOWN


def test_stores_are_asked(built: Built, bucket: Bucket) -> None:
    url = bucket.upload(built.data, "data")
    findings = examine(url, f"{bucket.url}/cache", processes=InProcess(), timing=QUICK)
    found = by_check(findings)
    assert not states(findings, State.ERROR), findings
    assert "answers in" in found["store of the data"].found
    assert found["store of the cache"].state == State.OK
    assert found["data"].found == "4 series, of which 0 are done"
    assert bucket.keys("cache/") == []


def test_a_store_that_lets_nobody_in_is_an_error(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    ran = call_cli(
        "doctor", "--data", built.data, "--cache", "s3://bucket/cache", "--workers", 1, "--json", env=environment()
    )
    assert ran.code == 2
    found = {entry["check"]: entry for entry in json.loads(ran.out)["findings"]}
    assert "there are no credentials" in found["store of the cache"]["found"]
