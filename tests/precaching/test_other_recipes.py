"""A cache and a program of different recipes: nothing is added to it, and it is read as ever."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from aneurysm import spec as spec_module
from aneurysm.cache.cache import open_cache
from aneurysm.cache.folder import read_spec
from aneurysm.cache.layout import CacheLayout
from aneurysm.errors import SpecError
from aneurysm.inference.read_series import read_path
from aneurysm.precaching.run import precache
from aneurysm.spec import RECIPE_VERSION, load_spec, parse_spec
from tests.support.built import Built
from tests.support.cache_state import tree_digest
from tests.support.command import call_in_process, environment, run_cli, start_cli

OTHER = RECIPE_VERSION + 90
OF_ANOTHER_RECIPE = f"import aneurysm.spec\n\naneurysm.spec.RECIPE_VERSION = {OTHER}\n"


@pytest.fixture
def copied(built: Built, tmp_path: Path) -> Built:
    return Built(built.data, shutil.copytree(built.cache, tmp_path / "cache"), built.uids)


@pytest.fixture
def other(tmp_path: Path) -> dict[str, str]:
    """The environment of a node with another release."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(OF_ANOTHER_RECIPE)
    return environment(first_path=tmp_path / "site")


@pytest.mark.parametrize("named", ["by its folder", "by its spec"])
def test_a_task_of_another_recipe_is_refused_at_its_start(copied: Built, other: dict[str, str], named: str) -> None:
    before = tree_digest(copied.cache)
    cache, spec = (copied.cache, ()) if named == "by its folder" else ("new", ("--spec", copied.cache / "spec.toml"))
    ran = run_cli("precache", "--data", copied.data, "--cache", cache, *spec, env=other, cwd=copied.cache.parent)
    assert (ran.code, ran.out) == (2, ""), ran.text
    last = ran.err.splitlines()[-1]
    assert f"it is of recipe {RECIPE_VERSION} (digest {load_spec('rsna-1mm').digest})" in last
    assert f"of recipe {OTHER}" in last
    assert "Go on with the release" in last
    assert tree_digest(copied.cache) == before
    assert not (copied.cache.parent / "new" / "spec.toml").exists()


def test_of_tasks_of_two_recipes_at_once_those_of_one_build_the_cache(
    built: Built, other: dict[str, str], tmp_path: Path
) -> None:
    options = ("precache", "--data", built.data, "--cache", tmp_path / "cache", "--workers", 1, "--shard")
    old, new = start_cli(*options, "0/2", env=other), start_cli(*options, "1/2")
    text = "".join(part for process in (old, new) for part in process.communicate(timeout=120))
    assert sorted((old.returncode, new.returncode)) == [0, 2], text
    assert re.search("is of recipe [0-9]+ .* this is aneurysm .* of recipe [0-9]+", text)
    spec = read_spec(CacheLayout(tmp_path / "cache"))
    assert spec.recipe == (RECIPE_VERSION if old.returncode else OTHER)
    merged = run_cli("manifest", "--cache", tmp_path / "cache", "--data", built.data)
    assert merged.code == 9, "it is of one recipe, and a half is missing"
    assert {v.metadata.digest for v in open_cache(tmp_path / "cache")} == {spec.digest}


def test_a_cache_of_another_recipe_is_read_as_ever(
    copied: Built, other: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = load_spec("rsna-1mm")
    ran = run_cli("verify", "--cache", copied.cache, env=other)
    assert ran.code == 0, ran.text
    ran = run_cli("info", "--cache", copied.cache, env=other)
    assert f"recipe {RECIPE_VERSION}, digest {ours.digest}" in ran.out
    monkeypatch.setattr(spec_module, "RECIPE_VERSION", OTHER)
    cache = open_cache(copied.cache)
    assert cache.spec.digest == ours.digest
    assert read_path(cache[0], cache.spec).volume.uid == cache.uids[0]


def test_volumes_of_another_digest_are_named(copied: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    uid, ours = copied.uids[0], load_spec("rsna-1mm").digest
    with monkeypatch.context() as patched:
        patched.setattr(spec_module, "RECIPE_VERSION", OTHER)
        foreign = copied.cache.parent / "foreign"
        precache(copied.data, foreign, series=[uid], workers=0)
        theirs = load_spec("rsna-1mm").digest
    place = CacheLayout(copied.cache).volume(uid)
    shutil.rmtree(place)
    shutil.copytree(CacheLayout(foreign).volume(uid), place)
    ran = call_in_process("manifest", "--cache", copied.cache, "--data", copied.data)
    assert ran.code == 3, ran.text
    assert f"volume {uid} is of digest {theirs}, and the cache of {ours}" in ran.err
    assert "1 volumes are of another spec or recipe" in ran.err
    ran = call_in_process("verify", "--cache", copied.cache)
    assert ran.code == 3
    assert f"{uid}: digest {theirs}, the cache's spec has {ours}" in ran.out


@pytest.mark.parametrize("edited", ["the digest", "a key that the digest covers"])
def test_a_spec_that_does_not_fit_its_digest_is_not_built_with(copied: Built, edited: str) -> None:
    path, digest = copied.cache / "spec.toml", load_spec("rsna-1mm").digest
    change = (digest, "0" * 16) if edited == "the digest" else ("max_gap_mm = ", "max_gap_mm = 1")
    text = path.read_text()
    assert text.count(change[0]) == 1
    path.write_text(text.replace(*change))
    for options in ((), ("--spec", path)):
        ran = call_in_process("precache", "--data", copied.data, "--cache", copied.cache, *options)
        assert (ran.code, ran.out) == (2, "")
        assert "it was edited, or comes from another release" in ran.err
    ran = call_in_process("verify", "--cache", copied.cache)
    assert ran.code == 3
    assert "spec.toml: was changed or damaged since it was written" in ran.out


def test_the_text_of_a_spec_keeps_recipe_and_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = load_spec("rsna-head-0.5mm")
    text = ours.to_toml()
    assert f'\nrecipe = {RECIPE_VERSION}\ndigest = "{ours.digest}"\n' in text
    assert parse_spec(text, "x", resolved=True) == ours
    monkeypatch.setattr(spec_module, "RECIPE_VERSION", OTHER)
    theirs = parse_spec(text, "x", resolved=True)
    assert (theirs.recipe, theirs.digest, theirs.to_toml()) == (RECIPE_VERSION, ours.digest, text)
    assert theirs.mismatch()
    assert load_spec("rsna-head-0.5mm").digest != ours.digest


@pytest.mark.parametrize(
    "before, after",
    [
        ("recipe = 3\n", ""),
        ("recipe = 3\n", "recipe = 0\n"),
        ("digest = ", "other = "),
        ('digest = "', 'digest = "x'),
        ('digest = "260931c4a05f3432"', "digest = 3"),
    ],
)
def test_a_resolved_spec_says_of_which_recipe_it_is(tmp_path: Path, before: str, after: str) -> None:
    text = load_spec("rsna-head-0.5mm").to_toml()
    assert before in text
    with pytest.raises(SpecError, match=r"recipe|digest"):
        parse_spec(text.replace(before, after), "x")


def test_a_cache_whose_spec_says_neither_is_of_another_release(copied: Built) -> None:
    path = copied.cache / "spec.toml"
    path.write_text(re.sub("(recipe|digest) = .*\n", "", path.read_text()))
    ran = call_in_process("info", "--cache", copied.cache)
    assert ran.code == 3
    assert "damaged or of another version" in ran.err
