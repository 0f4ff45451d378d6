"""What is timed: each contender is a function, and `python -m benchmarks.contenders` runs one in its process.

A contender has two halves. The outer function imports and returns the inner one; only the inner one is
timed. It is given the folder of one series and an empty folder to write to, and does what a person would
write with that tool: read the series, bring it to 1 mm isotropic, write it. Nobody but us hashes or
flushes what was written.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[[Path, Path], None]

TARGET_MM = 1.0


@dataclass(frozen=True)
class Contender:
    """One way of doing the job."""

    title: str
    make: Callable[[], Run]
    anti_aliased: str = "no"
    heavy: bool = False  # many times slower than the rest: of the generated series, timed on the first only


def ours() -> Run:
    """Do what a precache worker does with one series: the whole volume, hashed, flushed, renamed in."""
    from aneurysm.precaching.build_series import SeriesJob, build_series
    from aneurysm.processes.threads import limit_threads
    from aneurysm.rawdata.folder import SeriesSource
    from aneurysm.rawdata.tables import SeriesNotes
    from aneurysm.spec import load_spec

    limit_threads(1)
    spec = load_spec("rsna-1mm")

    def run(series: Path, out: Path) -> None:
        source = SeriesSource(series.name, files=tuple(str(p) for p in sorted(_files(series))))
        outcome = build_series(SeriesJob(source, SeriesNotes(), None, out, spec, b"secret"))
        if outcome.status != "cached":
            raise RuntimeError(f"{outcome.reason}: {outcome.detail}")

    return run


def scipy_zoom() -> Run:
    """Run the script most people start from. It assumes even, untilted slices."""
    import numpy as np
    import pydicom
    from scipy.ndimage import zoom

    def run(series: Path, out: Path) -> None:
        slices = [pydicom.dcmread(path) for path in _files(series)]
        slices = [s for s in slices if "PixelData" in s]
        row, column = (np.array(slices[0].ImageOrientationPatient[i : i + 3], float) for i in (0, 3))
        normal = np.cross(row, column)
        slices.sort(key=lambda s: float(normal @ np.array(s.ImagePositionPatient, float)))
        positions = [float(normal @ np.array(s.ImagePositionPatient, float)) for s in slices]
        gap_mm = (positions[-1] - positions[0]) / (len(slices) - 1)
        volume = np.stack([_physical(s) for s in slices])
        factors = [gap_mm / TARGET_MM, *(float(v) / TARGET_MM for v in slices[0].PixelSpacing)]
        np.save(out / "volume.npy", np.rint(zoom(volume, factors, order=1)).astype(np.int16))

    def _physical(s: pydicom.Dataset) -> np.ndarray:
        pixels = s.pixel_array.astype(np.float32)
        return pixels * np.float32(s.get("RescaleSlope", 1)) + np.float32(s.get("RescaleIntercept", 0))

    return run


def simpleitk(smoothing: str = "") -> Run:
    """Run ImageSeriesReader + Resample, perhaps behind a Gaussian. They assume even, untilted slices."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)

    def run(series: Path, out: Path) -> None:
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series)))
        image = reader.Execute()
        spacing, size = image.GetSpacing(), image.GetSize()
        if smoothing:
            image = _smoothed(sitk.Cast(image, sitk.sitkFloat32), spacing)
        new_size = [math.ceil(n * s / TARGET_MM) for n, s in zip(size, spacing, strict=True)]
        volume = sitk.Resample(
            image, new_size, sitk.Transform(), sitk.sitkLinear, image.GetOrigin(), [TARGET_MM] * 3,
            image.GetDirection(), -1000, sitk.sitkInt16,
        )  # fmt: skip
        sitk.WriteImage(volume, str(out / "volume.mha"))

    def _smoothed(image: sitk.Image, spacing: tuple[float, ...]) -> sitk.Image:
        sigmas_mm = [sigma_mm(s) for s in spacing]
        if smoothing == "discrete":
            return sitk.DiscreteGaussian(image, [max(s, 1e-3) ** 2 for s in sigmas_mm])
        for axis, sigma in enumerate(sigmas_mm):
            if sigma:
                image = sitk.RecursiveGaussian(image, sigma=sigma, direction=axis)
        return image

    return run


def sigma_mm(spacing_mm: float) -> float:
    """
    Return the Gaussian that blurs a voxel of `spacing_mm` to one of 1 mm: their FWHMs differ in quadrature.

    Cardoso et al., Scale factor point spread function matching, MICCAI 2015; what TorchIO takes too.
    """
    return math.sqrt(max(TARGET_MM**2 - spacing_mm**2, 0)) / (2 * math.sqrt(2 * math.log(2)))


def monai(reader: str, *, smooth: bool = False) -> Run:
    """Run LoadImaged + Spacingd, trilinear; perhaps with GaussianSmoothd between."""
    import numpy as np
    import torch
    from monai.transforms import Compose, GaussianSmoothd, LoadImaged, Spacingd

    if reader == "ITKReader":
        import itk

        itk.set_nthreads(1)
    torch.set_num_threads(1)
    load = LoadImaged("image", reader=reader, ensure_channel_first=True)
    resample = Spacingd("image", pixdim=(TARGET_MM,) * 3, mode="bilinear")

    def run(series: Path, out: Path) -> None:
        data = load({"image": str(series)})
        if smooth:
            spacing = data["image"].pixdim.tolist()
            data = GaussianSmoothd("image", sigma=[max(sigma_mm(s) / s, 1e-3) for s in spacing])(data)
        volume = Compose([resample])(data)["image"]
        np.save(out / "volume.npy", np.rint(volume.numpy()).astype(np.int16))

    return run


def dcm2niix() -> Run:
    """Run the converter alone: no resampling, an uncompressed NIfTI file on the scanner's own grid."""
    import subprocess

    import dcm2niix as package

    def run(series: Path, out: Path) -> None:
        command = [package.bin, "-z", "n", "-b", "n", "-f", "volume", "-o", str(out), str(series)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError((done.stdout + done.stderr)[-300:])

    return run


def floor_bytes() -> Run:
    """Read every file's bytes, and nothing else."""

    def run(series: Path, _out: Path) -> None:
        for path in _files(series):
            path.read_bytes()

    return run


def floor_decode() -> Run:
    """Read and decode every slice with pydicom, and forget it."""
    import pydicom

    def run(series: Path, _out: Path) -> None:
        for path in _files(series):
            dataset = pydicom.dcmread(path)
            if "PixelData" in dataset:
                _ = dataset.pixel_array

    return run


CONTENDERS = {
    "ours": Contender("**aneurysm precache** (Zarr, hashed, flushed)", ours, "triangle"),
    "scipy": Contender("(a) pydicom + scipy.ndimage.zoom(order=1) + np.save", scipy_zoom),
    "sitk": Contender("(b) SimpleITK reader + linear resample", simpleitk),
    "sitk-recursive": Contender(
        "(b) the same behind RecursiveGaussian", lambda: simpleitk("recursive"), "Gaussian", heavy=True
    ),
    "sitk-discrete": Contender(
        "(b) the same behind DiscreteGaussian", lambda: simpleitk("discrete"), "Gaussian", heavy=True
    ),
    "dcm2niix": Contender("(c) dcm2niix alone: no resampling", dcm2niix, "-"),
    "monai-pydicom": Contender("(d) MONAI PydicomReader + Spacingd", lambda: monai("PydicomReader"), heavy=True),
    "monai-itk": Contender("(d) MONAI ITKReader + Spacingd", lambda: monai("ITKReader"), heavy=True),
    "monai-gaussian": Contender(
        "(d) MONAI PydicomReader + GaussianSmoothd + Spacingd",
        lambda: monai("PydicomReader", smooth=True),
        "Gaussian",
        heavy=True,
    ),
    "floor-bytes": Contender("(e1) floor: reading the bytes", floor_bytes, "-"),
    "floor-decode": Contender("(e2) floor: pydicom dcmread + pixel_array", floor_decode, "-"),
}


def main() -> None:
    """Run one contender on one series once, and print what it took as a line of JSON."""
    name, series, warm_up, out = sys.argv[1], *map(Path, sys.argv[2:5])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    run = CONTENDERS[name].make()
    # A few slices first: libraries load their codecs at the first use, and a worker lives for many series.
    with contextlib.suppress(Exception):
        _timed(run, warm_up, out / "warm-up")
    # Every contender finds the files in the page cache: the tools are compared, not the disk.
    for path in _files(series):
        path.read_bytes()
    before_mb = peak_mb()
    seconds, cpu_s = _timed(run, series, out / "timed")
    out_mb = sum(path.stat().st_size for path in _files(out / "timed")) / 1e6
    result = {
        "seconds": seconds,
        "cpu_s": cpu_s,
        "peak_mb": peak_mb(),
        "before_mb": before_mb,
        "out_mb": out_mb,
    }
    # On a line of its own: some tools leave a progress bar behind.
    print("\n" + json.dumps(result))


def _timed(run: Run, series: Path, out: Path) -> tuple[float, float]:
    out.mkdir(parents=True)
    wall, cpu = time.perf_counter(), _cpu_s()
    run(series, out)
    return time.perf_counter() - wall, _cpu_s() - cpu


def _cpu_s() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def peak_mb() -> float:
    """Largest resident size so far, of this process or of a child that has ended."""
    unit = 1 if sys.platform == "darwin" else 1024
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss: on Linux that starts from the size of whoever started this process.
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return max(int(lines["VmHWM"].split()[0]) * 1024, children) / 1e6
    return max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, children) / 1e6


if __name__ == "__main__":
    main()
