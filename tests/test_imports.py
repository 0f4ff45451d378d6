"""What is loaded when: training does without what reads DICOM, and a cache is read without torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

STAGE_1 = {"pydicom", "SimpleITK", "gdcm", "joblib", "dask", "distributed"}
# MONAI and scikit-learn take seconds to load.
HEAVY = STAGE_1 | {"monai", "sklearn"}
# Each with those before it, in one process: importing torch takes seconds, too.
KEPT_OUT = {
    "aneurysm": HEAVY | {"torch", "numpy", "pandas", "zarr", "matplotlib"},
    "aneurysm.remote": HEAVY | {"torch", "numpy", "boto3", "obstore"},
    "aneurysm.cache": HEAVY | {"torch", "scipy", "boto3", "obstore"},
    "aneurysm.models": HEAVY | {"scipy", "matplotlib"},
    "aneurysm.patches": HEAVY | {"scipy", "matplotlib"},
    "aneurysm.windows": HEAVY | {"scipy", "matplotlib"},
    "aneurysm.report": HEAVY | {"scipy"},
    "aneurysm.training": HEAVY | {"scipy"},
}
IMPORT_ALL = """
import importlib, json, pkgutil, sys
loaded = {}
for name in sys.argv[1:]:
    package = importlib.import_module(name)
    if name != "aneurysm":
        for module in pkgutil.walk_packages(package.__path__, name + "."):
            importlib.import_module(module.name)
    loaded[name] = list(sys.modules)
print(json.dumps(loaded))
"""


def test_importing_all_of_a_package_loads_nothing_that_it_does_without():
    command = [sys.executable, "-c", IMPORT_ALL, *KEPT_OUT]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    loaded = json.loads(ran.stdout)
    unwanted = {name: sorted(KEPT_OUT[name].intersection(modules)) for name, modules in loaded.items()}
    assert unwanted == {name: [] for name in KEPT_OUT}


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # as if it were not installed
sys.argv = ["aneurysm", *sys.argv[1:]]
from aneurysm.cli.main import main
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
from aneurysm.cli.main import main
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
