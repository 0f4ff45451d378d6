"""The training side starts without what only stage 1 needs."""

import subprocess
import sys

import pytest

STAGE_1 = {"pydicom", "SimpleITK", "joblib", "dask"}
# Lightning loads scipy. MONAI and scikit-learn would load joblib, and take seconds.
PACKAGES = {"aneurysm.models": {"scipy", "monai", "sklearn"}, "aneurysm.training": {"monai", "sklearn"}}


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_it_loads_nothing_of_stage_1(package):
    code = f"""
import importlib, pkgutil, sys
package = importlib.import_module({package!r})
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
print(*sorted({STAGE_1 | PACKAGES[package]!r} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.split() == []
