"""aneurysm: the commands, and what their exit codes mean."""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import Any, NoReturn

import typer
from typer.main import get_command

from aneurysm._version import __version__
from aneurysm.cli import doctor, eda, evaluate, info, manifest, phantom, plan, precache, predict, status, train, verify
from aneurysm.cli.command import Command, Group, expand_environment
from aneurysm.cli.exits import Exit
from aneurysm.errors import AneurysmError, CacheError, ClusterError, NoSpaceError, StoreError, UsageError

_NAME = "aneurysm"
"""What the program is called in usage lines, however it was started."""
_CommandLineError: type[Exception] = typer.BadParameter.__mro__[2]
"""What Typer raises of a command line that it can't parse; it has no public name."""

_EXTRAS = {
    **dict.fromkeys(("torch", "monai", "sklearn", "tensorboard"), "train"),
    **dict.fromkeys(("distributed", "dask"), "cluster"),
    **dict.fromkeys(("obstore", "boto3", "botocore"), "objects"),
}

app = typer.Typer(
    name=_NAME,
    cls=Group,
    help="Brain CTA, MRA and MR DICOM series into one Zarr cache that a GPU can train from.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("doctor", cls=Command)(doctor.doctor)
app.command("plan", cls=Command)(plan.plan)
app.command("precache", cls=Command)(precache.precache)
app.command("status", cls=Command)(status.status)
app.command("manifest", cls=Command)(manifest.manifest)
app.command("verify", cls=Command)(verify.verify)
app.command("info", cls=Command)(info.info)
app.command("train", cls=Command)(train.train)
app.command("predict", cls=Command)(predict.predict)
app.command("phantom", cls=Command)(phantom.phantom)
app.command("eda", cls=Command)(eda.eda)
app.command("evaluate", cls=Command)(evaluate.evaluate)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aneurysm {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    pass


@cache
def _command() -> Any:
    """Return what `app` describes. To build it takes a tenth of a second, which tests that call `main` pay once."""
    return get_command(app)


def main() -> NoReturn:
    """Run the command line; every error of ours is one message and an exit code, never a traceback."""
    code = Exit.OK
    try:
        expand_environment()
        code = _command()(prog_name=_NAME, standalone_mode=False) or Exit.OK
    except NoSpaceError as error:
        _fail(error, Exit.NO_SPACE)
    except UsageError as error:
        _fail(error, Exit.USAGE)
    except CacheError as error:
        _fail(error, Exit.CACHE)
    except (ClusterError, StoreError) as error:
        _fail(error, Exit.INCOMPLETE)
    except AneurysmError as error:
        _fail(error, Exit.ERROR)
    except ModuleNotFoundError as error:
        # Precaching does without what training needs, one machine without what a cluster or an object store needs.
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        needed = (
            f"this needs {error.name}, of the extra {extra}: pip install 'aneurysm[{extra}]', or '.[{extra}]' in a "
            "checkout"
        )
        _fail(UsageError(needed), Exit.USAGE)
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)
    except BrokenPipeError:
        # `aneurysm info | head`: the reader has left. Keep Python from complaining of it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Exit.OK)
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        _fail(AneurysmError(f"{where}{error.strerror or error}"), Exit.ERROR)
    except _CommandLineError as error:
        # Without arguments the help is shown; there is no message then.
        if str(error):
            _fail(UsageError(_in_one_line(error)), Exit.USAGE)
        sys.exit(Exit.USAGE)
    sys.exit(code)


def _in_one_line(error: Any) -> str:
    """Return Typer's error as ours are: the option, what is wrong with it, and which help explains it."""
    context, param = getattr(error, "ctx", None), getattr(error, "param", None)
    message = (error.message if param is not None and error.message else error.format_message()).rstrip(".")
    if param is not None and error.message:
        called = param.opts[0] if param.param_type_name == "option" else param.metavar or param.name.upper()
        message = f"{called} {message.removeprefix('Value error, ')}"
    return f"{message[:1].lower()}{message[1:]}. See {_NAME if context is None else context.command_path} --help"


def _fail(error: AneurysmError, code: Exit) -> NoReturn:
    message = error.args[-1] if isinstance(error, OSError) and len(error.args) > 1 else error
    typer.echo(f"aneurysm: {message}", err=True)
    sys.exit(code)
