"""Corrected tables and masks reach a cache that is there as if it were built anew, and no slice is read for it."""

from __future__ import annotations

import errno
import itertools
import json
import re
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from aneurysm.cache.volume import CachedVolume, close_volumes
from aneurysm.precaching import relabel, slot
from aneurysm.precaching.run import RunSummary, precache
from aneurysm.precaching.slot import LocalFiles
from aneurysm.precaching.verify import verify
from aneurysm.rawdata import folder
from tests.support.built import Built
from tests.support.cache_paths import record_paths, volume_path
from tests.support.cache_state import attributes, leftovers, manifest, same_cache, tree_digest
from tests.support.command import call_cli, call_in_process, environment, start_cli
from tests.support.corrections import (
    CORRECTIONS,
    edit_localizer,
    edit_table,
    edit_train,
    mask_file,
    to_another_image,
    to_no_image,
    turn_mask,
    two_labels,
)


@pytest.fixture
def copied(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Built:
    """A data set and finished cache of one's own."""
    monkeypatch.setenv("ANEURYSM_PATIENT_KEY", environment()["ANEURYSM_PATIENT_KEY"])
    shutil.copytree(built.data, tmp_path / "data")
    shutil.copytree(built.cache, tmp_path / "cache")
    return Built(tmp_path / "data", tmp_path / "cache", built.uids)


def run_again(copied: Built, monkeypatch: pytest.MonkeyPatch, **options: object) -> RunSummary:
    """Run precache, which must not read a series."""
    with monkeypatch.context() as patched:
        patched.setattr(folder, "read_series", lambda *_: pytest.fail("a series was read"))
        return precache(copied.data, copied.cache, workers=0, **options)


def assert_as_built_anew(copied: Built, tmp_path: Path) -> None:
    """To the byte: every volume, record and row."""
    fresh = tmp_path / "fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    precache(copied.data, fresh, workers=0)
    assert same_cache(copied.cache, fresh) == []
    assert (copied.cache / "lesions.csv").read_bytes() == (fresh / "lesions.csv").read_bytes()
    records = [{path.name: path.read_bytes() for path in record_paths(cache)} for cache in (copied.cache, fresh)]
    assert records[0] == records[1]
    assert leftovers(copied.cache) == []
    assert verify(copied.cache, data=copied.data, deep=True, workers=0).faults == []


@pytest.mark.parametrize("what", CORRECTIONS)
def test_a_correction_gives_the_cache_that_would_be_built_anew(
    copied: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    correct, kinds, n = CORRECTIONS[what]
    correct(copied.data, copied.uids)
    shards = {path: path.stat() for path in copied.cache.glob("volumes/*/*/0/c/0/0/0")}
    assert len(shards) == 4
    summary = run_again(copied, monkeypatch)
    assert (summary.updated, dict(summary.updates), summary.not_updated) == (n, kinds, {})
    assert_as_built_anew(copied, tmp_path)
    assert {p: (p.stat().st_ino, p.stat().st_ctime_ns) for p in shards} == {
        p: (s.st_ino, s.st_ctime_ns) for p, s in shards.items()
    }
    before = tree_digest(copied.cache / "volumes")
    assert run_again(copied, monkeypatch).updated == 0
    assert tree_digest(copied.cache / "volumes") == before


def test_tables_and_masks_that_come_after_the_volumes(
    copied: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside = tmp_path / "aside"
    aside.mkdir()
    for name in ("train.csv", "train_localizers.csv", "segmentations"):
        shutil.move(copied.data / name, aside / name)
    shutil.rmtree(copied.cache)
    assert not precache(copied.data, copied.cache, workers=0).has_labels
    assert attributes(copied.cache, copied.uids[0])["labels"] is None
    shutil.copytree(aside, copied.data, dirs_exist_ok=True)
    summary = run_again(copied, monkeypatch)
    assert summary.updated == 4
    assert summary.updates == {"labels": 4, "modality": 4, "lesions": 2, "vessels": 1}
    assert_as_built_anew(copied, tmp_path)


def test_tables_that_are_absent_leave_what_is_known(copied: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train.csv", "train_localizers.csv"):
        (copied.data / name).unlink()
    shutil.rmtree(copied.data / "segmentations")
    before = tree_digest(copied.cache / "volumes")
    assert run_again(copied, monkeypatch).updated == 0
    assert tree_digest(copied.cache / "volumes") == before
    assert verify(copied.cache, data=copied.data, workers=0).faults == []


def test_the_command_says_how_many(copied: Built) -> None:
    two_labels(copied.data, copied.uids)
    command = ("precache", "--data", copied.data, "--cache", copied.cache, "--workers", 1)
    first = call_in_process(*command)
    assert first.code == 0, first.text
    assert "2 of 4 volumes: labels updated (labels of 2)." in first.out
    assert "labels updated" not in call_in_process(*command).text
    (copied.data / "train.csv").unlink()
    without = call_in_process(*command)
    assert without.text.count("no train.csv") == 1
    assert "Those of volumes that were there stay" in without.out


def test_a_mask_is_read_in_another_process_by_the_command(copied: Built, tmp_path: Path) -> None:
    turn_mask(copied.data, copied.uids[0])
    ran = call_cli("precache", "--data", copied.data, "--cache", copied.cache, "--workers", 2, "--timeout-s", 60)
    assert ran.code == 0, ran.text
    assert "1 of 4 volumes: labels updated (vessel mask of 1)." in ran.out
    assert_as_built_anew(copied, tmp_path)


def test_verify_tells_differences_and_changes_nothing(copied: Built) -> None:
    two_labels(copied.data, copied.uids)
    to_another_image(copied.data, copied.uids)
    turn_mask(copied.data, copied.uids[0])
    before = tree_digest(copied.cache)
    assert call_in_process("verify", "--cache", copied.cache, "--workers", 1).code == 0
    ran = call_in_process("verify", "--cache", copied.cache, "--data", copied.data, "--workers", 1)
    assert ran.code == 3, ran.text
    assert f"{copied.uids[0]}: the labels, the lesions, the vessel mask in the cache and in" in ran.out
    assert f"{copied.uids[1]}: the labels in the cache" in ran.out
    assert copied.uids[2] not in ran.out
    assert tree_digest(copied.cache) == before
    assert call_in_process("precache", "--data", copied.data, "--cache", copied.cache, "--workers", 1).code == 0
    assert call_in_process("verify", "--cache", copied.cache, "--data", copied.data, "--workers", 1).code == 0


def test_only_the_chosen_series_are_updated(copied: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    two_labels(copied.data, copied.uids)
    summary = run_again(copied, monkeypatch, series=[copied.uids[1]])
    assert (summary.updated, summary.skipped) == (1, 1)
    assert attributes(copied.cache, copied.uids[0])["labels"]["Basilar Tip"] == 1
    assert attributes(copied.cache, copied.uids[1])["labels"]["Basilar Tip"] == 1


# what a series without a volume holds -----------------------------------------------------------------------


def test_records_follow_the_tables(copied: Built, tmp_path: Path) -> None:
    uid = copied.uids[0]
    shutil.rmtree(copied.data / "series" / uid)
    (copied.data / "series" / uid).mkdir()
    with (copied.data / "train.csv").open("a") as file:
        file.write(f"1.2.3,60,Male,CTA,{','.join('0' * 14)}\n")
    precache(copied.data, copied.cache, overwrite=True, workers=0)
    assert manifest(copied.cache)[uid]["reason"] == "no_files"
    edit_train(copied.data, uid, **{"Basilar Tip": "0", "Modality": "MRA"})
    to_no_image(copied.data, copied.uids)
    edit_localizer(copied.data, 0, location="Left Middle Cerebral Artery")
    edit_train(copied.data, "1.2.3", **{"Basilar Tip": "1", "Aneurysm Present": "1"})
    summary = precache(copied.data, copied.cache, workers=0)
    assert (summary.updated, dict(summary.updates)) == (2, {"labels": 2, "modality": 1, "lesions": 1})
    assert_as_built_anew(copied, tmp_path)
    edit_table(copied.data / "train.csv", lambda rows: rows.pop())
    assert precache(copied.data, copied.cache, workers=0).updated == 0
    assert "1.2.3" not in manifest(copied.cache)
    assert_as_built_anew(copied, tmp_path)


# kills, readers, two runs -----------------------------------------------------------------------------------


class _KilledError(BaseException):
    pass


def _count_down(monkeypatch: pytest.MonkeyPatch, steps: int) -> list[str]:
    """Let the run die before the write after ``steps`` others; return the list of what was written."""
    done: list[str] = []

    def dying(publish: Callable[..., None]) -> Callable[..., None]:
        def write(content: object, final: Path, claimed: Path) -> None:
            if len(done) == steps:
                raise _KilledError
            done.append(final.name)
            publish(content, final, claimed)

        return write

    monkeypatch.setattr(slot, "publish_file", dying(slot.publish_file))
    monkeypatch.setattr(slot, "publish_tree", dying(slot.publish_tree))
    return done


def state_of(cache: Path, uid: str) -> tuple[object, ...]:
    """What a reader finds: labels, blocks of vessels, voxels of the mask."""
    close_volumes()
    volume = CachedVolume(cache, uid)
    mask = volume.read_vessels((0, 0, 0), volume.shape).tobytes() if volume.has_vessels else b""
    facts = volume.metadata.model_dump_json(include={"labels", "lesions", "modality"})
    return facts, volume.blocks.vessels.tobytes(), volume.blocks.from_mask, mask


@pytest.mark.parametrize("what", ["another mask", "no mask any more", "one mask more"])
def test_a_run_that_dies_at_any_write_leaves_the_old_or_the_new(
    copied: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    uid = copied.uids[2 if what == "one mask more" else 0]
    old = state_of(copied.cache, uid)
    CORRECTIONS[what][0](copied.data, copied.uids)
    edit_train(copied.data, uid, **{"Left Middle Cerebral Artery": "1"})
    precache(copied.data, tmp_path / "new", series=[uid], workers=0)
    new = state_of(tmp_path / "new", uid)
    assert old != new
    seen = []
    for steps in itertools.count():
        cache = tmp_path / f"killed{steps}"
        shutil.copytree(copied.cache, cache)
        with monkeypatch.context() as patched:
            done = _count_down(patched, steps)
            try:
                precache(copied.data, cache, workers=0)
                break
            except _KilledError:
                pass
        assert len(done) == steps
        found = state_of(cache, uid)
        assert found in (old, new)
        seen.append(found == new)
        # The tables are of before; and files may be there that are no part of the volume any more.
        faults = [f for f in verify(cache, workers=0).faults if not f.derived]
        assert [f for f in faults if "is no part of the volume" not in f.what] == []
        precache(copied.data, cache, workers=0)
        assert_as_built_anew(Built(copied.data, cache, copied.uids), tmp_path)
    assert seen == sorted(seen), "what is new stays"
    assert len(seen) >= 2


DIES = """
import os, signal
from aneurysm.precaching import slot

publish = slot.publish_file

def dying(content, final, claimed):
    publish(content, final, claimed)
    os.killpg(os.getpgrp(), signal.SIGKILL)

slot.publish_file = dying
"""


def test_sigkill_in_the_middle_is_mended_by_the_next_run(copied: Built, tmp_path: Path) -> None:
    turn_mask(copied.data, copied.uids[0])
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(DIES)
    env = environment(first_path=tmp_path / "site")
    process = start_cli("precache", "--data", copied.data, "--cache", copied.cache, "--workers", 1, env=env)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    volume = volume_path(copied.cache, copied.uids[0])
    assert (volume / "labels.next").is_dir(), "the run was not in the middle of its work"
    assert attributes(copied.cache, copied.uids[0])["vessel_mask"]["path"] == "labels.next/vessels/0"
    found = call_in_process("verify", "--cache", copied.cache, "--workers", 1)
    assert "labels is no part of the volume. Run aneurysm precache" in found.out
    precache(copied.data, copied.cache, workers=0)
    assert_as_built_anew(copied, tmp_path)


def test_readers_see_a_whole_volume_at_any_time(copied: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process opens the volume again and again while its mask is replaced again and again."""
    uid = copied.uids[0]
    states = [state_of(copied.cache, uid)]
    turn_mask(copied.data, uid)
    precache(copied.data, copied.cache, workers=0)
    states.append(state_of(copied.cache, uid))
    seen: list[object] = []
    stop = threading.Event()

    def read() -> None:
        try:
            while not stop.is_set():
                seen.append(state_of(copied.cache, uid) in states)
        except Exception as error:
            seen.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    original = mask_file(copied.data, uid).read_bytes()
    turn_mask_back = np.roll(sitk.GetArrayFromImage(sitk.ReadImage(str(mask_file(copied.data, uid)))), -9, axis=1)
    image = sitk.GetImageFromArray(turn_mask_back)
    image.CopyInformation(sitk.ReadImage(str(mask_file(copied.data, uid))))
    for turn in range(6):
        if turn % 2:
            mask_file(copied.data, uid).write_bytes(original)
        else:
            sitk.WriteImage(image, str(mask_file(copied.data, uid)))
        assert precache(copied.data, copied.cache, workers=0).updated == 1
    stop.set()
    reader.join()
    assert len(seen) > 6
    assert set(seen) == {True}, [s for s in seen if s is not True][:3]


def test_whoever_has_a_volume_open_reads_on(copied: Built) -> None:
    close_volumes()
    volume = CachedVolume(copied.cache, copied.uids[0])
    voxels, mask = (read((0, 0, 0), volume.shape) for read in (volume.read, volume.read_vessels))
    turn_mask(copied.data, copied.uids[0])
    assert precache(copied.data, copied.cache, workers=0).updated == 1
    assert np.array_equal(volume.read((0, 0, 0), volume.shape), voxels)
    assert np.array_equal(volume.read_vessels((0, 0, 0), volume.shape), mask)
    close_volumes()
    assert not np.array_equal(volume.read_vessels((0, 0, 0), volume.shape), mask)


def test_what_another_run_holds_is_left_to_it(copied: Built) -> None:
    from aneurysm.cache.layout import CacheLayout
    from aneurysm.precaching.publish import claim

    two_labels(copied.data, copied.uids)
    before = tree_digest(copied.cache / "volumes")
    with claim(CacheLayout(copied.cache), copied.uids[0]):
        summary = precache(copied.data, copied.cache, workers=0)
        assert (summary.updated, summary.busy) == (1, 1)
        ran = call_in_process("precache", "--data", copied.data, "--cache", copied.cache, "--workers", 1)
    assert ran.code == 9, ran.text
    assert "1 series are in the hands of another run: when it is done, run this again." in ran.out
    after = tree_digest(copied.cache / "volumes")
    assert {name.split("/")[1] for name in after if after[name] != before[name]} == {f"{copied.uids[1]}.zarr"}
    summary = precache(copied.data, copied.cache, workers=0)
    assert (summary.updated, summary.busy) == (1, 0)


def test_damaged_annotations_are_not_made_to_look_sound(copied: Built) -> None:
    uid = copied.uids[0]
    path = volume_path(copied.cache, uid) / "zarr.json"
    content = json.loads(path.read_text())
    content["attributes"]["aneurysm"]["patient_key"] = "0" * 16
    path.write_text(json.dumps(content, indent=2) + "\n")
    two_labels(copied.data, copied.uids)
    ran = call_in_process("precache", "--data", copied.data, "--cache", copied.cache, "--workers", 1)
    assert ran.code == 8, ran.text
    assert f"the labels of {uid} were not updated: its metadata were changed or damaged" in ran.out
    assert call_in_process("verify", "--cache", copied.cache, "--workers", 1).code == 3
    assert precache(copied.data, copied.cache, overwrite=True, series=[uid], workers=0).cached == 1
    assert verify(copied.cache, data=copied.data, workers=0).faults == []


@pytest.mark.parametrize("step", ["file_hash", "resample_mask"])
def test_a_mask_that_can_not_be_read_is_told_and_its_volume_stays_as_it_was(
    copied: Built, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    uid = copied.uids[0]
    turn_mask(copied.data, uid)
    two_labels(copied.data, copied.uids)
    before = tree_digest(volume_path(copied.cache, uid))

    def fail(path: Path, *_: object) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(relabel, step, fail)
        summary = run_again(copied, patched)
        faults = verify(copied.cache, data=copied.data, workers=0).faults
    told = "its vessel mask can't be read: OSError: Input/output error"
    assert (summary.updated, summary.not_updated) == (1, {uid: told})
    assert tree_digest(volume_path(copied.cache, uid)) == before
    if step == "file_hash":
        assert [(f.where, f.what) for f in faults] == [(uid, told)]
    assert run_again(copied, monkeypatch).updated == 1


@pytest.mark.parametrize("what", ["mask", "lesion"])
def test_an_unforeseen_error_costs_one_volume_and_not_the_run(
    copied: Built, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    first, second = copied.uids[:2]
    turn_mask(copied.data, first) if what == "mask" else to_another_image(copied.data, copied.uids)
    edit_train(copied.data, second, **{"Basilar Tip": "1"})
    with monkeypatch.context() as patched:
        patched.setattr(relabel, "update_volume", _failing_of(relabel.update_volume, first))
        summary = run_again(copied, patched)
    assert (summary.updated, list(summary.not_updated)) == (1, [first])
    assert re.fullmatch(r"KeyError at test_relabel.py:\d+; please report it", summary.not_updated[first])
    assert attributes(copied.cache, second)["labels"]["Basilar Tip"] == 1
    assert run_again(copied, monkeypatch).updated == 1


def _failing_of(update: Callable[..., object], uid: str) -> Callable[..., object]:
    def fail(files: LocalFiles, *args: object) -> object:
        if files.volume.name == f"{uid}.zarr":
            raise KeyError("Doe^Jane")
        return update(files, *args)

    return fail


MASK_KILLS = """
import os, signal
from aneurysm.precaching import relabel

relabel.resample_mask = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_mask_that_takes_its_process_along_costs_no_more_than_itself(copied: Built, tmp_path: Path) -> None:
    turn_mask(copied.data, copied.uids[0])
    edit_train(copied.data, copied.uids[1], **{"Basilar Tip": "1"})
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(MASK_KILLS)
    env = environment(first_path=tmp_path / "site")
    process = start_cli("precache", "--data", copied.data, "--cache", copied.cache, "--workers", 1, env=env)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 8, out + err
    assert "1 of 4 volumes: labels updated (labels of 1)." in out
    assert f"the labels of {copied.uids[0]} were not updated: its vessel mask can't be placed: " in out
    assert attributes(copied.cache, copied.uids[1])["labels"]["Basilar Tip"] == 1
