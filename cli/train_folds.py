"""aneurysm train --fold all: a run for each fold, in processes of their own, then one report of all of them.

Each is what `aneurysm train --fold K` makes, in ``OUT/foldK``. What they have in common is written once, before the
first begins, so that folds which begin later, perhaps after a stop, are of the same configuration and the same split.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any, Final

import typer

from aneurysm.cli.exits import Exit
from aneurysm.csv_table import read_csv_rows
from aneurysm.errors import DataError, UsageError
from aneurysm.processes.files import is_disk_full, write_atomically
from aneurysm.training.run_folder import FoldsFolder, RunFolder, locked_run

if TYPE_CHECKING:
    from aneurysm.training.config import ResolvedConfig

# As aneurysm.processes.children starts its processes, with the same modules in reach. PR_SET_PDEATHSIG: a fold does not
# outlive this process, but saves and ends.
_START: Final = (
    "import ctypes, json, sys; ctypes.CDLL(None).prctl(1, 15); sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from aneurysm.cli.main import main; main()"
)
_OF_ALL: Final = (Exit.USAGE, Exit.CACHE, Exit.NO_SPACE)
"""Exit codes of what keeps further folds from training, too."""
_LAUNCHED_BY: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_NTASKS")
_POLL_S: Final = 0.1


def begin_folds(config: ResolvedConfig, folder: FoldsFolder) -> None:
    """
    Write what the runs of all folds have in common, and train them.

    Parameters
    ----------
    config
        Of all runs; its ``fold`` has no say.

    Raises
    ------
    UsageError
        The folder holds runs already or can't be made, or a fold can't be trained: none is begun.
    typer.Exit
        A fold failed, or a signal came.
    """
    from aneurysm.cache.cache import open_cache
    from aneurysm.training.config_file import config_toml
    from aneurysm.training.folds import write_folds
    from aneurysm.training.split import split_folds

    RunFolder(folder.root).check_unused()
    slots = device_slots(config)
    cache = open_cache(config.cache, local_cache=config.local_cache, local_cache_gb=config.local_cache_gb)
    splits = split_folds(cache, config)
    for fold in splits:
        folder.run(fold).check_unused()
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if is_disk_full(error):
            raise
        raise UsageError(f"the folder {folder.root} can't be made: {error.strerror}") from error
    write_folds(folder.folds, cache.uids, cache.patient_keys, next(iter(splits.values())).folds)
    write_atomically(folder.config, config_toml(config))
    _train(config, folder, list(splits), slots, {})


def resume_folds(folder: FoldsFolder, options: Mapping[str, Any]) -> None:
    """
    Train what is left of the folds: those that were stopped resume, those that were never saved begin.

    Parameters
    ----------
    options
        What is changed; see `aneurysm.cli.train`.

    Raises
    ------
    UsageError
        What `begin_folds` wrote is not there or damaged.
    typer.Exit
        A fold failed, or a signal came.
    """
    from aneurysm.training.config_file import config_table, config_toml, parse_resolved, read_resolved
    from aneurysm.training.folds import fold_rows

    config = parse_resolved({**config_table(read_resolved(folder.config)), **options}, "options")
    slots = device_slots(config)
    folds = sorted({fold for _, fold in fold_rows(folder.folds).values()} - {config.test_fold})
    write_atomically(folder.config, config_toml(config))
    _train(config, folder, folds, slots, options)


def device_slots(config: ResolvedConfig) -> list[dict[str, str]]:
    """
    Return what to set in the environment of folds that train side by side: the GPUs of each; one entry is one fold.

    With a number of ``devices``, as many at once as there are GPUs for. With ``auto`` one fold has all GPUs; so it has
    the CPUs, which several would only share.

    Raises
    ------
    UsageError
        There are fewer GPUs, or without any fewer CPUs, than one fold is to have.
    """
    import torch

    from aneurysm.models.device import check_devices

    gpus = torch.cuda.device_count()
    if config.devices == "auto":
        return [{}]
    check_devices(config.devices, gpus=gpus)
    if gpus < 2 * config.devices:
        return [{}]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",")[:gpus] if visible else [str(i) for i in range(gpus)]
    shares = range(0, gpus - config.devices + 1, config.devices)
    return [{"CUDA_VISIBLE_DEVICES": ",".join(names[first : first + config.devices])} for first in shares]


def _train(
    config: ResolvedConfig,
    folder: FoldsFolder,
    folds: Sequence[int],
    slots: Sequence[Mapping[str, str]],
    options: Mapping[str, Any],
) -> None:
    from aneurysm.training.fit import usual_workers

    slots = slots[: len(folds)]
    if len(slots) > 1 and config.devices != "auto":
        # Each fold would take all CPUs for itself.
        options = {"workers": usual_workers(config, len(slots) * config.devices), **options}
    done = [fold for fold in folds if _is_done(folder.run(fold), config.epochs)]
    if done:
        typer.echo(f"done before: {', '.join(f'fold {fold}' for fold in done)}", err=True)
    commands = {fold: _arguments(config, folder, fold, options) for fold in folds if fold not in done}
    again = f"To go on: aneurysm train --out {folder.root} --resume"
    codes, number = run_side_by_side(commands, slots)
    if number is not None:
        typer.echo(f"aneurysm: stopped. {again}", err=True)
        raise typer.Exit(128 + number)
    failed = {fold: code for fold, code in codes.items() if code}
    if failed:
        lines = [f"fold {fold} {_end_in_words(code)}: see {folder.run(fold).log}" for fold, code in failed.items()]
        n_trained, first = len(done) + len(codes) - len(failed), next(iter(failed.values()))
        typer.echo(f"aneurysm: {'; '.join(lines)}. {n_trained} of {len(folds)} folds are trained. {again}", err=True)
        raise typer.Exit(first if first > 0 else Exit.ERROR)
    from aneurysm.cli.evaluate import evaluate

    typer.echo(f"All {len(folds)} folds are trained, each in {folder.root}/fold<K>. Together:")
    evaluate([folder.root])


def _is_done(run: RunFolder, epochs: int) -> bool:
    """Return True if all of a run's epochs are trained, validated and saved, without loading what it saved."""
    try:
        # It is saved after all else of an epoch; in a folder that was copied it may be the older one, and is resumed.
        if run.last.stat().st_mtime_ns < run.metrics.stat().st_mtime_ns or not run.best.exists():
            return False
        return any(row["epoch"] == str(epochs) for row in read_csv_rows(run.metrics, ("epoch",)))
    except (OSError, DataError):
        return False


def _arguments(config: ResolvedConfig, folder: FoldsFolder, fold: int, options: Mapping[str, Any]) -> list[str]:
    """Return the arguments of the command that trains a fold, from its beginning or from where it is."""
    run = folder.run(fold)
    arguments = ["train", "--out", str(run.root)]
    if run.last.exists():
        arguments.append("--resume")
        given = dict(options)
    else:
        if run.config.exists():  # it was ended before it was first saved: there is nothing to resume from
            with locked_run(run):
                run.config.unlink(missing_ok=True)
        arguments += ["--config", str(folder.config), "--folds-file", str(folder.folds), "--fold", str(fold)]
        given = {"workers": options["workers"]} if "workers" in options else {}
        if config.init is not None and Path(config.init).is_dir():
            given["init"] = FoldsFolder(Path(config.init)).run(fold).best
    return arguments + [text for key, value in given.items() for text in (f"--{key.replace('_', '-')}", str(value))]


@dataclass
class _Running:
    fold: int
    slot: int
    process: subprocess.Popen[str]
    readers: list[threading.Thread]


def run_side_by_side(
    commands: Mapping[int, Sequence[str]], slots: Sequence[Mapping[str, str]], start: str = _START
) -> tuple[dict[int, int], int | None]:
    """
    Run a command for each fold, one in each slot at a time.

    Signals are passed on, and then no other command is begun; nor is one after an exit code that another fold would
    have, too. A single slot's command has this one's terminal; of several, each line says which fold it is of.

    Parameters
    ----------
    commands
        Arguments by fold.
    slots
        What is set in the environment of the command that has it.
    start
        Code that each process runs.

    Returns
    -------
    tuple
        Exit codes by fold, negative: the signal that ended it, of those that were begun; and the signal that came.
    """
    todo, free, running = list(commands), list(range(len(slots))), list[_Running]()
    codes: dict[int, int] = {}
    number: int | None = None

    def pass_on(signal_number: int, _frame: FrameType | None) -> None:
        nonlocal number
        number = number or signal_number
        for one in running:
            one.process.send_signal(signal_number)

    with _handled(pass_on):
        while todo or running:
            if number is not None or any(code in _OF_ALL for code in codes.values()):
                todo.clear()
            while todo and free:
                fold, slot = todo.pop(0), free.pop(0)
                if len(slots) == 1:
                    typer.echo(f"fold {fold}: {len(codes) + 1} of {len(commands)}", err=True)
                running.append(_start(fold, slot, commands[fold], slots[slot], start, alone=len(slots) == 1))
                if number is not None:  # it came while the process was being started
                    running[-1].process.send_signal(number)
            time.sleep(_POLL_S)
            for one in [r for r in running if r.process.poll() is not None]:
                for reader in one.readers:
                    reader.join()
                codes[one.fold] = one.process.returncode
                running.remove(one)
                free.append(one.slot)
    return codes, number


def _start(
    fold: int, slot: int, arguments: Sequence[str], own: Mapping[str, str], start: str, *, alone: bool
) -> _Running:
    env = {name: value for name, value in os.environ.items() if name not in _LAUNCHED_BY} | dict(own)
    path = json.dumps([str(folder) for folder in sys.path])
    pipe = None if alone else subprocess.PIPE
    # From the main thread: the signal at the parent's death is that of the thread which started the process.
    process = subprocess.Popen(  # noqa: S603 - our own interpreter
        [sys.executable, "-P", "-c", start, path, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        env=env,
        text=True,
        errors="replace",
    )
    readers = [
        threading.Thread(target=_repeat, args=(stream, f"fold {fold}: ", is_error), daemon=True)
        for stream, is_error in ((process.stdout, False), (process.stderr, True))
        if stream is not None
    ]
    for reader in readers:
        reader.start()
    return _Running(fold, slot, process, readers)


def _repeat(stream: IO[str], prefix: str, is_error: bool) -> None:
    with stream:
        for line in stream:
            typer.echo(f"{prefix}{line.rstrip()}", err=is_error)


@contextmanager
def _handled(handler: Any) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _end_in_words(code: int) -> str:
    if code > 0:
        return f"ended with exit code {code}"
    name = next((s.name for s in signal.Signals if s == -code), f"signal {-code}")
    return f"was ended by {name}" + (", for which a lack of memory is the usual cause" if name == "SIGKILL" else "")
