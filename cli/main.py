"""aneurysm: the commands, and what their exit codes mean."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import typer

from aneurysm import __version__
from aneurysm.errors import AneurysmError, CacheError, NoSpaceError, UsageError
from cli import evaluate, info, manifest, phantom, precache, predict, train, verify
from cli.exits import Exit

_EXTRAS = {
    **dict.fromkeys(("torch", "lightning", "monai", "sklearn", "tensorboard"), "train"),
    **dict.fromkeys(("distributed", "dask"), "cluster"),
    **dict.fromkeys(("obstore", "boto3", "botocore"), "objects"),
}

app = typer.Typer(
    name="aneurysm",
    help="Brain CTA, MRA and MR DICOM series into one Zarr cache that a GPU can train from.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("precache")(precache.precache)
app.command("manifest")(manifest.manifest)
app.command("verify")(verify.verify)
app.command("info")(info.info)
app.command("train")(train.train)
app.command("predict")(predict.predict)
app.command("phantom")(phantom.phantom)
app.command("evaluate")(evaluate.evaluate)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aneurysm {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    pass


def main() -> NoReturn:
    """Run the command line; every error of ours is one message and an exit code, never a traceback."""
    try:
        app()
    except NoSpaceError as error:
        _fail(error, Exit.NO_SPACE)
    except UsageError as error:
        _fail(error, Exit.USAGE)
    except CacheError as error:
        _fail(error, Exit.CACHE)
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
    sys.exit(Exit.OK)


def _fail(error: AneurysmError, code: Exit) -> NoReturn:
    message = error.args[-1] if isinstance(error, OSError) and len(error.args) > 1 else error
    typer.echo(f"aneurysm: {message}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
