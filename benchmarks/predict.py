"""`python -m benchmarks.predict`: what `aneurysm predict` takes on a CPU, and where the time goes. Writes RESULTS.md.

A generated CTA of 300 slices of 512 x 512 pixels goes through every model of the package, with random weights, which
take as long as trained ones. Each model has a process of its own, and runs the series once more than is counted.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch import nn

from aneurysm.inference.predictor import load_predictor
from aneurysm.inference.read_series import read_path
from aneurysm.inference.series_paths import find_paths
from aneurysm.labels import LABELS
from aneurysm.models.registry import ARCHITECTURES, build_model
from aneurysm.processes.threads import limit_threads
from aneurysm.spec import load_spec
from aneurysm.training.checkpoint import model_entries, save_atomically
from aneurysm.training.config_file import parse_config
from aneurysm.windows.grid import read_windows
from benchmarks.data import write_series
from benchmarks.table import command_line, machine, write_section

QUICK = ("cnn3d", "resnet3d18")
_NOTES = """\
Start: `--help`, and the libraries that `predict` needs, each in a new process; then the checkpoint. Read: DICOM to the
volume of the cache spec `rsna-1mm`. Windows: cutting and scaling them, and searching their maps for candidates. Model:
the network alone. Pooling: the series' probabilities and its ten candidates. Peak memory is the process's, libraries
included. Windows are those of training, in voxels (z, y, x), and share a quarter with their neighbours; "coverage" says
how often the model sees each voxel of the volume, on average; `--overlap` changes it.
"""


@dataclass(frozen=True)
class Run:
    """Seconds of one series by phase, and what else is worth knowing of it."""

    load_s: float
    read_s: float
    model_s: float
    windows_s: float
    pooling_s: float
    windows: int
    coverage: float
    peak_mb: float


class _Timed(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.began, self.ended, self.seconds = model, 0.0, 0.0, 0.0

    def forward(self, image: torch.Tensor):
        self.began = time.perf_counter()
        output = self.model(image)
        self.ended = time.perf_counter()
        self.seconds += self.ended - self.began
        return output


def main() -> int:
    """Measure, print, and put the section into RESULTS.md, unless it was quick."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two small models, 60 slices, once; writes no results")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=multiprocessing.cpu_count())
    arguments = parser.parse_args()
    repeats, slices = (1, 60) if arguments.quick else (arguments.repeats, 300)
    rows = []
    with TemporaryDirectory() as work:
        series = write_series(Path(work) / "series", slices, "raw")
        for name in QUICK if arguments.quick else ARCHITECTURES:
            checkpoint = _checkpoint(Path(work) / f"{name}.ckpt", name)
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                run = process.submit(_measure, checkpoint, series, repeats, arguments.threads).result()
            rows.append(_row(name, run))
            print(rows[-1], file=sys.stderr, flush=True)
    about = machine(("aneurysm", "numpy", "pydicom", "torch", "monai"))
    lines = ["# Predicting one series on a CPU", "", *(f"- {key}: {value}" for key, value in about.items())]
    lines += [
        f"- command: `{command_line('benchmarks.predict')}`, median of {repeats} runs, {arguments.threads} threads"
    ]
    lines += ["", _NOTES, "| start-up | s |", "|---|--:|", *_start_up(repeats), ""]
    lines += [
        "| model | window | windows | coverage | load s | read s | windows s | model s | pooling s | all s | MB |"
    ]
    lines += ["|---|---|" + "--:|" * 9, *rows]
    text = "\n".join(lines) + "\n"
    print(text)
    if not arguments.quick:
        write_section(text)
    return 0


def _row(name: str, run: Run) -> str:
    window = ARCHITECTURES[name].patch_shape
    series_s = run.read_s + run.windows_s + run.model_s + run.pooling_s
    return (
        f"| `{name}` | {' x '.join(map(str, window))} | {run.windows} | {run.coverage:.2f} | {run.load_s:.2f} "
        f"| {run.read_s:.2f} | {run.windows_s:.2f} | {run.model_s:.2f} | {run.pooling_s:.2f} | {series_s:.2f} "
        f"| {run.peak_mb:.0f} |"
    )


def _start_up(repeats: int) -> list[str]:
    rows = []
    for what, command in (
        ("`aneurysm predict --help`", ["-m", "aneurysm", "predict", "--help"]),
        ("libraries of `predict`", ["-c", "import aneurysm.inference.predictor"]),
        ("of these, torch", ["-c", "import torch"]),
        ("MONAI, of which the large models are made", ["-c", "import torch, monai.networks.nets.resnet"]),
    ):
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - started)
        rows.append(f"| {what} | {median(seconds):.2f} |")
    return rows


def _checkpoint(path: Path, name: str) -> Path:
    config = parse_config({"model": name}, name).resolved()
    weights = build_model(name).state_dict()
    save_atomically(model_entries(weights, config, load_spec("rsna-1mm"), 0, {}, [None] * len(LABELS), ["CTA"]), path)
    return path


def _measure(checkpoint: Path, series: Path, repeats: int, threads: int) -> Run:
    limit_threads(threads)
    started = time.perf_counter()
    predictor = load_predictor([checkpoint], device="cpu")
    load_s = time.perf_counter() - started
    timed = predictor._models[0,] = _Timed(predictor.model((0,)))  # noqa: SLF001 - to time it where it is used
    (path,) = find_paths(series)
    runs = []
    for _ in range(repeats + 1):
        timed.seconds = 0.0
        started = time.perf_counter()
        read = read_path(path, predictor.routing)
        read_s = time.perf_counter() - started
        predictor.answer(read)
        ended = time.perf_counter()
        pooling_s = ended - timed.ended
        windows_s = ended - started - read_s - timed.seconds - pooling_s
        runs.append(Run(load_s, read_s, timed.seconds, windows_s, pooling_s, 0, 0.0, 0.0))
    options = predictor.options
    windows = len(read_windows(read.volume, options.view.shape, options.overlap).starts)
    voxels = windows * torch.Size(options.view.shape).numel() / read.volume.voxels.size
    middle = sorted(runs[1:], key=lambda run: run.model_s)[repeats // 2]
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return replace(middle, windows=windows, coverage=voxels, peak_mb=peak_mb)


if __name__ == "__main__":
    sys.exit(main())
