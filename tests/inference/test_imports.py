"""Validation runs where training does: sliding windows load nothing of stage 1."""

import subprocess
import sys


def test_windows_load_nothing_of_stage_1():
    code = """
import sys
import aneurysm.windows.predict
print(*sorted({"pydicom", "SimpleITK", "joblib", "dask", "scipy", "monai"} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.split() == []
