"""The command line itself: how it is started, what its help shows, and arguments as people type them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from typer.main import get_command

from aneurysm.cli import options
from aneurysm.cli.command import _spread
from aneurysm.cli.main import app
from tests.support.command import call_cli, environment, run_cli
from tests.support.run_data import write_rsna_data

COMMANDS = get_command(app).commands


def module(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "aneurysm", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment(**env))


@pytest.mark.parametrize("args", [("--help",), ("precache", "--help"), ("info", "--cache", "/nowhere"), ("nonsense",)])
def test_python_dash_m_is_the_command(args):
    ran, command = module(*args), call_cli(*args)
    assert (ran.returncode, ran.stdout, ran.stderr) == (command.code, command.out, command.err)
    assert "python" not in ran.stdout + ran.stderr


def test_python_dash_m_completes_as_the_command_does():
    ran = module(_ANEURYSM_COMPLETE="complete_bash", COMP_WORDS="aneurysm pre", COMP_CWORD="1")
    assert ran.stdout.split() == ["precache", "predict"]
    ran = module(_ANEURYSM_COMPLETE="complete_bash", COMP_WORDS="aneurysm verify --de", COMP_CWORD="2")
    assert ran.stdout.split() == ["--deep"]


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_has_no_flaws(name):
    ran = call_cli(*filter(None, [name, "--help"]))
    assert ran.code == 0
    # An empty pair of brackets, a type after a flag, Python's name of a type, and text that was cut.
    for flaw in (r"\[\]", "<bool>", r"<\w+\[?\w*\]?>(?!-)", r"\{", "…", "None", "range"):
        assert not re.search(flaw, ran.out.replace("runs/<time>-<model>-fold<K>", "")), flaw


@pytest.mark.parametrize(
    "name, usage",
    [
        ("precache", "aneurysm precache [OPTIONS]"),
        ("info", "aneurysm info [OPTIONS] [UID]"),
        ("phantom", "aneurysm phantom [OPTIONS] OUT"),
        ("predict", "aneurysm predict [OPTIONS] CHECKPOINT... SERIES..."),
        ("evaluate", "aneurysm evaluate [OPTIONS] RUN|TABLE..."),
    ],
)
def test_usage_is_what_to_type(name, usage):
    assert f"Usage: {usage}\n" in re.sub(r" +\n", "\n", call_cli(name, "--help").out)


def test_every_option_says_what_follows_it_and_what_holds_without_it():
    assert {"precache", "train", "predict"} <= set(COMMANDS)
    for name, command in COMMANDS.items():
        for param in command.params:
            assert param.help, (name, param.name)
            if param.param_type_name == "option" and not param.is_flag:
                assert param.metavar, (name, param.name)
                has_default = param.required or param.default is not None
                assert has_default or param.show_default is not True, (name, param.name)


def test_several_values_follow_one_option():
    several = {"--series"}
    for typed, given in (
        ("--series a b --limit 1", "--series a --series b --limit 1"),
        ("--series a --series b", "--series a --series b"),
        ("--series=a b", "--series=a --series b"),
        ("--series -1 a", "--series -1 --series a"),
        ("--limit 1 a", "--limit 1 a"),
        ("--series a -- b", "--series a -- b"),
    ):
        assert " ".join(_spread(typed.split(), several)) == given


@pytest.mark.parametrize(
    "args, words",
    [
        (("verify", "mine"), "unexpected argument 'mine': the cache is named with --cache, as --cache mine"),
        (("precache", "in", "out"), "unexpected argument 'in': the data are named with --data, the cache with --cache"),
        (("precache", "--series", "1.2", "--overwrite", "1.3"), "unexpected argument '1.3'"),
        (("train", "MRA", "--modality", "CTA"), "unexpected argument 'MRA': modalities follow --modality"),
        (("phantom", "a", "b"), "unexpected argument 'b'"),
        (("verify", "--cahce", "x"), "no such option: --cahce"),
        (("verfy",), "no such command 'verfy'"),
        (("predict",), "missing argument 'CHECKPOINT... SERIES...'"),
        (("verify", "--cache"), "option '--cache' requires an argument"),
        (("verify", "--deep=yes"), "'--deep' does not take a value"),
        (("verify", "--cache=file:///my%20d/c"), "--cache file:///my%20d/c: give the path alone, /my d/c"),
    ],
)  # fmt: skip
def test_what_can_t_be_parsed_is_one_line_and_exit_code_2(args, words):
    ran = call_cli(*args)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("aneurysm: ")
    assert ran.err.count("\n") == 1
    assert words in ran.err


@pytest.mark.parametrize("value", ["", " "])
@pytest.mark.parametrize(
    "args, variable, named",
    [
        (("precache", "--cache={}"), "", "--cache"),
        (("precache", "--cache", "{}"), "", "--cache"),
        (("precache", "--data", "{}"), "", "--data"),
        (("precache",), "ANEURYSM_CACHE", "ANEURYSM_CACHE"),
        (("manifest",), "ANEURYSM_DATA", "ANEURYSM_DATA"),
        (("train",), "ANEURYSM_LOCAL_CACHE", "ANEURYSM_LOCAL_CACHE"),
    ],
)
def test_what_is_empty_is_refused_and_not_taken_for_the_default(args, variable, named, value, tmp_path):
    env = environment(**({variable: value} if variable else {}))
    ran = call_cli(*(a.format(value) for a in args), cwd=tmp_path, env=env)
    assert (ran.code, ran.out) == (2, "")
    assert f"aneurysm: {named} is " in ran.err
    assert "empty: give it a value" in ran.err
    assert not list(tmp_path.iterdir())


def test_a_variable_that_is_empty_does_not_matter_beside_an_option(tmp_path):
    ran = call_cli("info", "--cache", tmp_path / "x", env=environment(ANEURYSM_CACHE="", ANEURYSM_DATA=""))
    assert ran.code == 3


def test_without_arguments_the_help_is_shown():
    ran = call_cli()
    assert ran.code == 2
    assert "precache" in ran.out
    assert ran.err == ""


def test_a_tilde_is_the_home_folder_wherever_it_stands(tmp_path):
    for given, variables in ((["--cache=~/x"], {}), (["--cache", "~/x"], {}), ([], {"ANEURYSM_CACHE": "~/x"})):
        env = environment(HOME=str(tmp_path / "home"), **variables)
        ran = call_cli("info", *given, env=env, cwd=tmp_path)
        assert ran.code == 3
        assert f"there is no cache at {tmp_path}/home/x" in ran.err


def test_more_workers_than_cpus_are_warned_of_and_not_refused(tmp_path, capsys):
    with mock.patch.object(options, "usable_cpus", return_value=2):
        assert options.chosen_workers(None) == 2
        assert options.chosen_workers(4) == 4
        assert capsys.readouterr().err == ""
        assert options.chosen_workers(40) == 40
        assert "--workers 40: 2 CPUs may be used here, so 2 are sensible" in capsys.readouterr().err
        assert options.chosen_workers(3, devices=2) == 3
        assert "--workers 3 for each of 2 devices: 2 CPUs may be used here, so 1 are" in capsys.readouterr().err
    write_rsna_data(tmp_path / "data", n_series=1)
    ran = call_cli("precache", "--workers", 900, cwd=tmp_path)
    assert ran.code == 0, ran.text
    assert "--workers 900: " in ran.err
    for command in (("verify",), ("manifest",)):
        ran = call_cli(*command, "--workers", 900, cwd=tmp_path)
        assert ran.code == 0, ran.text
        assert "--workers 900: " in ran.err


def test_modules_of_ones_own_named_as_ours_break_nothing(tmp_path: Path) -> None:
    for name in ("cli", "cache_specs"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not this one')")
    ran = run_cli("precache", "--help", env=environment(first_path=tmp_path))
    assert (ran.code, "precache [OPTIONS]" in ran.out) == (0, True), ran.text
