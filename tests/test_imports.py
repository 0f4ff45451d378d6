"""Training runs on machines that have no use for what reads DICOM: importing its side must not load that."""

from __future__ import annotations

import subprocess
import sys

import pytest

KEPT_OUT = ("pydicom", "SimpleITK", "joblib", "dask")


@pytest.mark.parametrize("package", ["aneurysm.cache.catalog", "aneurysm.patches"])
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
