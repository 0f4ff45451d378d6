"""aneurysm phantom: a seed -> a synthetic data set in the RSNA layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aneurysm.cli.exits import unwind_on_sigterm
from aneurysm.cli.options import Workers, chosen_workers
from aneurysm.cli.progress import Display
from aneurysm.cli.values import choice, number, whole
from aneurysm.sizes import size_text


def phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the data set: empty, or not there yet.")],
    series: Annotated[int, typer.Option(metavar="N", parser=whole(1), help="How many series.")] = 24,
    seed: Annotated[int, typer.Option(metavar="N", parser=whole(0), help="The same seed gives the same bytes.")] = 0,
    size: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            parser=choice(("tiny", "small", "full")),
            help="full: as scanners deliver; small: about 1 mm; tiny: 2 mm, for quick tests.",
        ),
    ] = "small",
    difficulty: Annotated[
        float,
        typer.Option(
            metavar="X", parser=number(0.25, 4), help="From 0.25 to 4: more makes aneurysms smaller and noise stronger."
        ),
    ] = 1.0,
    quirks: Annotated[
        bool, typer.Option("--quirks/--no-quirks", help="With all that occurs in real data, or plain series only.")
    ] = True,
    workers: Workers = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a phantom data set that is there.")] = False,
) -> None:
    """Write a synthetic data set with known truth (truth.csv). The same command resumes an interrupted run."""
    from aneurysm.phantom.dataset import write_dataset

    unwind_on_sigterm()
    with Display("phantom") as display:
        try:
            summary = write_dataset(
                out,
                series=series,
                seed=seed,
                size=size,
                difficulty=difficulty,
                quirks=quirks,
                workers=chosen_workers(workers),
                overwrite=overwrite,
                progress=lambda done, total: display.show(f"{done} of {total} series", done / total),
            )
        except KeyboardInterrupt:
            typer.echo("aneurysm: interrupted. The same command goes on from here.", err=True)
            raise
    resumed = f" ({summary.resumed} were there already)" if summary.resumed else ""
    typer.echo(f"{summary.series} series{resumed}, {size_text(summary.bytes)} in {out}, {summary.seconds:.1f} s.")
