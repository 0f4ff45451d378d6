"""What a person can get wrong on the command line: each is named in plain words, with exit code 2."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.built import Built
from tests.support.cache_state import manifest, tree_digest
from tests.support.command import Ran, call_in_process, environment, run_cli
from tests.support.run_data import write_rsna_data


def assert_refused(ran: Ran, *words: str) -> None:
    """Exit code 2, no traceback, and a message that names what is wrong."""
    assert ran.code == 2, ran.text
    assert "Traceback" not in ran.text
    for word in words:
        assert word.lower() in ran.text.lower(), ran.text


@pytest.mark.parametrize("number", ["0", "-1", "two", "1.5", ""])
def test_impossible_number_of_workers(built: Built, tmp_path: Path, number: str) -> None:
    ran = call_in_process("precache", "--data", built.data, "--cache", tmp_path / "cache", f"--workers={number}")
    assert_refused(ran, "workers")
    assert not (tmp_path / "cache").exists()


def test_missing_data_folder(tmp_path: Path) -> None:
    ran = call_in_process("precache", "--workers", 1, "--data", tmp_path / "nowhere", "--cache", tmp_path / "cache")
    assert_refused(ran, str(tmp_path / "nowhere"))
    assert not (tmp_path / "cache").exists()


def test_data_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    ran = call_in_process("precache", "--workers", 1, "--data", tmp_path / "data", "--cache", tmp_path / "cache")
    assert_refused(ran, str(tmp_path / "data"))


@pytest.mark.parametrize("content", ["nothing", "other files", "an empty series folder"])
def test_data_folder_without_dicom(tmp_path: Path, content: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    if content == "other files":
        (data / "notes.txt").write_text("nothing to see")
        (data / "short").write_bytes(b"DICM")
    if content == "an empty series folder":
        (data / "series").mkdir()
    ran = call_in_process("precache", "--workers", 1, "--data", data, "--cache", tmp_path / "cache")
    assert_refused(ran, str(data))


def test_cache_that_is_a_file(built: Built, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("mine")
    ran = call_in_process("precache", "--workers", 1, "--data", built.data, "--cache", tmp_path / "cache")
    assert_refused(ran, str(tmp_path / "cache"))
    assert (tmp_path / "cache").read_text() == "mine"


def test_cache_below_a_file(built: Built, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    ran = call_in_process("precache", "--workers", 1, "--data", built.data, "--cache", tmp_path / "file" / "cache")
    assert_refused(ran, str(tmp_path / "file"))


def test_cache_where_nothing_can_be_made(built: Built) -> None:
    ran = call_in_process("precache", "--workers", 1, "--data", built.data, "--cache", "/proc/aneurysm-cache")
    assert_refused(ran, "/proc/aneurysm-cache")


def test_folder_full_of_something_else_is_left_alone(built: Built, tmp_path: Path) -> None:
    """A cache path that holds other files: used beside them or refused, but none of them is touched."""
    cache = tmp_path / "home"
    (cache / "volumes" / "photos").mkdir(parents=True)
    (cache / "volumes" / "photos" / "cat.jpg").write_text("miaow")
    (cache / "thesis.txt").write_text("final version")
    before = tree_digest(cache)
    call_in_process("precache", "--workers", 1, "--data", built.data, "--cache", cache)
    after = tree_digest(cache)
    assert {name: after.get(name) for name in before} == before


@pytest.mark.parametrize("name", ["nope", "./nope.toml", "rsna-2mm", "../rsna-1mm", ""])
def test_unknown_spec(built: Built, tmp_path: Path, name: str) -> None:
    ran = call_in_process(
        "precache", "--workers", 1, "--data", built.data, "--cache", tmp_path / "cache", "--spec", name
    )
    assert_refused(ran, "spec")
    assert not (tmp_path / "cache").exists()


def test_unknown_spec_lists_the_known_ones(built: Built, tmp_path: Path) -> None:
    ran = call_in_process(
        "precache", "--workers", 1, "--data", built.data, "--cache", tmp_path / "cache", "--spec", "nope"
    )
    assert_refused(ran, "rsna-1mm", "rsna-1mm-u8", "rsna-head-0.5mm")


@pytest.mark.parametrize("text", ["not = [toml", "answer = 42\n", ""], ids=["broken", "unknown key", "empty"])
def test_spec_file_that_is_none(built: Built, tmp_path: Path, text: str) -> None:
    spec = tmp_path / "mine.toml"
    spec.write_text(text)
    ran = call_in_process(
        "precache", "--workers", 1, "--data", built.data, "--cache", tmp_path / "cache", "--spec", spec
    )
    assert_refused(ran, "mine.toml", *(["answer"] if "answer" in text else []))
    assert not (tmp_path / "cache").exists()


def test_another_spec_is_refused_into_an_existing_cache(built: Built) -> None:
    before = tree_digest(built.cache)
    ran = call_in_process(
        "precache", "--workers", 1, "--data", built.data, "--cache", built.cache, "--spec", "rsna-1mm-u8"
    )
    assert ran.code not in (0, 8), ran.text
    assert "Traceback" not in ran.text
    assert "rsna-1mm-u8" in ran.text
    assert "--cache" in ran.text, "the message should say what to do"
    assert tree_digest(built.cache) == before


def test_an_edited_spec_is_refused_into_an_existing_cache(built: Built, tmp_path: Path) -> None:
    """Not the name counts, but what is in it."""
    spec = tmp_path / "rsna-1mm.toml"
    text = (built.cache / "spec.toml").read_text()
    assert "2000" in text
    spec.write_text(text.replace("2000", "1900"))
    before = tree_digest(built.cache)
    ran = call_in_process("precache", "--workers", 1, "--data", built.data, "--cache", built.cache, "--spec", spec)
    assert ran.code not in (0, 8), ran.text
    assert "spec" in ran.text
    assert tree_digest(built.cache) == before


def test_the_resolved_spec_is_a_spec(built: Built, tmp_path: Path) -> None:
    """CACHE/spec.toml given back as --spec makes the same cache."""
    shutil.copytree(built.cache, tmp_path / "cache")
    spec = built.cache / "spec.toml"
    ran = call_in_process(
        "precache", "--workers", 1, "--data", built.data, "--cache", tmp_path / "cache", "--spec", spec
    )
    assert ran.code == 0, ran.text


def test_a_series_that_is_not_there(built: Built, tmp_path: Path) -> None:
    ran = call_in_process(
        "precache", "--workers", 1, "--data", built.data, "--cache", tmp_path / "cache", "--series", "1.2.3.4.5"
    )
    assert_refused(ran, "1.2.3.4.5")


@pytest.mark.parametrize("limit", ["-1", "some"])
def test_impossible_limit(built: Built, tmp_path: Path, limit: str) -> None:
    ran = call_in_process(
        "precache", "--workers", 1, "--data", built.data, "--cache", tmp_path / "cache", f"--limit={limit}"
    )
    assert_refused(ran, "limit")


@pytest.mark.parametrize("command", ["verify", "info"])
def test_no_cache_to_look_at(tmp_path: Path, command: str) -> None:
    ran = call_in_process(command, "--cache", tmp_path / "nowhere")
    assert ran.code not in (0, 8), ran.text
    assert "Traceback" not in ran.text
    assert str(tmp_path / "nowhere") in ran.text


def test_folders_from_the_environment(tmp_path: Path) -> None:
    uids = write_rsna_data(tmp_path / "in", n_series=1)
    env = environment(ANEURYSM_DATA=str(tmp_path / "in"), ANEURYSM_CACHE=str(tmp_path / "out"))
    ran = call_in_process("precache", "--workers", 1, env=env, cwd=tmp_path)
    assert ran.code == 0, ran.text
    assert set(manifest(tmp_path / "out")) == set(uids)


def test_folders_and_workers_by_default_and_plain_lines_into_a_pipe(tmp_path: Path) -> None:
    """`aneurysm precache` as people type it; where there is no terminal, no escape codes and no bars."""
    uids = write_rsna_data(tmp_path / "data", n_series=2)
    ran = run_cli("precache", cwd=tmp_path)
    assert ran.code == 0, ran.text
    assert set(manifest(tmp_path / "cache")) == set(uids)
    assert "\x1b" not in ran.text
    assert "\r" not in ran.text
