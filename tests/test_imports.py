"""Training runs on machines that have no use for what reads DICOM: importing its side must not load that."""

from __future__ import annotations

import subprocess
import sys

import pytest

KEPT_OUT = ("pydicom", "SimpleITK", "joblib", "dask", "distributed")


@pytest.mark.parametrize("package", ["aneurysm.cache.cache", "aneurysm.patches"])
def test_the_training_side_loads_nothing_of_stage_1(package):
    code = f"""
import importlib, pkgutil, sys
package = importlib.import_module({package!r})
for module in pkgutil.walk_packages(getattr(package, "__path__", []), {package!r} + "."):
    importlib.import_module(module.name)
print(*[m for m in {KEPT_OUT} if m in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == []


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # as if it were not installed
sys.argv = ["aneurysm", *sys.argv[1:]]
from cli.main import main
main()
"""


@pytest.mark.parametrize("arguments", [["train"], ["predict", "some.ckpt", "series"]])
def test_without_the_extra_the_command_says_which_one_it_needs(arguments, tmp_path):
    (tmp_path / "some.ckpt").touch()
    (tmp_path / "series").mkdir()
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert ran.returncode == 2, ran.stderr
    assert "extra train" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["predict", "some.ckpt", "1.2.3.4.5"], "A UID alone does not say where the series is"),
        (["train", "--out", "some", "--resume"], "there is nothing to go on from in some"),
        (["train", "--init", "none.ckpt"], "--init: there is no checkpoint none.ckpt"),
    ],
)
def test_a_mistyped_path_is_answered_before_torch_is_loaded(arguments, said, tmp_path):
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
    (tmp_path / "some.ckpt").touch()
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert ran.returncode == 2, ran.stderr
    assert said in ran.stderr


HELP = """
import sys
sys.argv = ["aneurysm", "precache", "--help"]
from cli.main import main
try:
    main()
finally:
    slow = {"numpy", "pydicom", "zarr", "torch", "pandas", "matplotlib"}
    print(*slow & sys.modules.keys(), file=sys.stderr)
"""


def test_the_help_loads_nothing_that_takes_time():
    ran = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "--data" in ran.stdout
    assert ran.stderr.split() == []


def test_without_the_extra_for_clusters_the_command_says_so(tmp_path):
    code = WITHOUT_TORCH.replace("torch", "distributed")
    command = [sys.executable, "-c", code, "precache", "--dask", "tcp://127.0.0.1:8786"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert ran.returncode == 2, ran.stderr
    assert "extra cluster" in ran.stderr
    assert "Traceback" not in ran.stderr
