"""Every option of every command, with values that make no sense: one line that names the option, and exit code 2."""

from __future__ import annotations

import pytest
from typer.main import get_command

from aneurysm.cli.main import app
from tests.support.command import call_cli

COMMANDS = get_command(app).commands
REQUIRED = {"phantom": ["OUT"], "predict": ["x.ckpt", "series"], "evaluate": ["run"], "eda": ["--out=eda"]}
"""Arguments without which no option is looked at; none of them is there."""

NUMBERS = ("-1", "1.5", "nan", "1e9", "two", "\u0661", "99999999999999999999", "0x10", "1 2")
REALS = ("-1", "nan", "inf", "-inf", "two", "1,5", "1e999")
BAD = {
    "N": NUMBERS,
    "K": NUMBERS,
    "MB": ("0", *NUMBERS),
    "S": ("0", *REALS),
    "GB": ("0", *REALS),
    "MM": ("0", *REALS),
    "X": REALS,
    "ALPHA": REALS,
    "auto|N": ("0", "-1", "1.5", "many", "1e9", "AUTO"),
    "Z[,Y,X]": ("1,2", "a", "-1", "1,2,3,4", "1.5", ",,", "nan"),
    "K|all": ("-1", "ALL", "1.5", "nan"),
    "LABEL": ("nonsense",),
    "logits|ranks": ("nonsense", "Logits"),
    "prevalence": ("nonsense",),
    "SIZE": ("nonsense", "TINY"),
    "I/N": ("3", "a/b", "2/2", "0/0", "-1/2", "1/"),
}
"""Values that no option of such a metavar takes."""
ALSO_BAD = {
    ("--precision", "X"): ("0", "1.01", "1e9"),
    ("--lr", "X"): ("0",),
    ("--overlap", "X"): ("1", "0.91", "1e9"),
    ("--difficulty", "X"): ("0", "4.1", "1e9"),
    ("--folds", "N"): ("0", "1"),
    ("--samples", "N"): ("0", "39", "10001"),
}
ZERO_IS_FINE = {"--seed", "--cases", "--candidates", "--fold", "--test-fold"}
NAMES = {"--loss", "--sampling", "--precision"}
"""Options of the metavar NAME whose values can be listed; a model's can't."""
FREE = {"DIR", "FILE", "DIR|URL", "NAME", "NAME|FILE", "UID...", "ID", "M...", "ADDRESS", "DEVICE", "MODULE:FUNCTION"}
"""What may be any text: test_silly_paths.py and the tests of each command look at those."""


def valued() -> list[tuple[str, str, str]]:
    """Command, option and metavar of all options that take a value."""
    return [
        (name, param.opts[0], param.metavar)
        for name, command in COMMANDS.items()
        for param in command.params
        if param.param_type_name == "option" and not param.is_flag
    ]


def bad_values(command: str, option: str, metavar: str) -> tuple[str, ...]:
    values = (*BAD.get(metavar, ()), *ALSO_BAD.get((option, metavar), ()))
    if metavar == "N" and option not in ZERO_IS_FINE and (command, option) != ("train", "--workers"):
        values += ("0",)
    return (*values, "nonsense") if option in NAMES and metavar == "NAME" else values


def test_every_kind_of_value_is_known_here():
    assert {metavar for _, _, metavar in valued()} <= BAD.keys() | FREE
    options = {(option, metavar) for _, option, metavar in valued()}
    assert options >= ALSO_BAD.keys()


def assert_one_line(ran, *words: str) -> None:
    assert ran.code == 2, ran.text
    assert ran.out == ""
    assert ran.err.startswith("aneurysm: ")
    assert ran.err.count("\n") == 1, ran.err
    for word in words:
        assert word in ran.err, ran.err


@pytest.mark.parametrize("command, option, metavar", valued())
def test_a_silly_value_is_refused(command, option, metavar, tmp_path):
    given = REQUIRED.get(command, [])
    for value in bad_values(command, option, metavar):
        fresh = ["--fresh"] if option == "--fold" and command == "evaluate" else []
        assert_one_line(call_cli(command, *given, *fresh, f"{option}={value}", cwd=tmp_path), option, value)
    assert_one_line(call_cli(command, *given, option, "", cwd=tmp_path), f"{option} is empty")
    assert_one_line(call_cli(command, *given, f"{option}=", cwd=tmp_path), f"{option} is empty")
    assert_one_line(call_cli(command, *given, option, "a\0b", cwd=tmp_path), option, "null character")
    assert_one_line(call_cli(command, *given, option, cwd=tmp_path), option)
    assert not list(tmp_path.iterdir())


FLAGS = [
    (name, flag)
    for name, command in COMMANDS.items()
    for param in command.params
    if getattr(param, "is_flag", False)
    for flag in (*param.opts, *param.secondary_opts)
]


@pytest.mark.parametrize("command, flag", FLAGS)
def test_a_flag_takes_no_value(command, flag, tmp_path):
    assert_one_line(call_cli(command, *REQUIRED.get(command, []), f"{flag}=1", cwd=tmp_path), flag)


@pytest.mark.parametrize(
    "command", [name for name in COMMANDS if name not in ("precache", "manifest", "verify", "train")]
)
def test_an_empty_argument_is_refused(command):
    assert_one_line(call_cli(command, ""), "an argument is empty")
