"""The training side starts without what only stage 1 needs."""

import subprocess
import sys

import pytest

PACKAGES = ["aneurysm.models", "aneurysm.training"]


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_it_loads_nothing_of_stage_1(package):
    code = f"""
import importlib, pkgutil, sys
package = importlib.import_module({package!r})
for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
print(*sorted({{"pydicom", "SimpleITK", "joblib", "dask", "scipy", "monai", "sklearn"}} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.split() == []
