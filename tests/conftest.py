"""Settings of all tests."""

from __future__ import annotations

import os
from importlib.util import find_spec

from hypothesis import settings

from tests.support.command import PATIENT_KEY

pytest_plugins = [f"tests.support.{name}" for name in ("built", "s3", "painted", "report_cache", "users")]

# Without the extra `train`, as where only caches are built and read: no test that trains, predicts or evaluates.
if find_spec("torch") is None:
    collect_ignore = ["docs", "inference", "models", "patches", "report", "training", "windows"]
    collect_ignore += ["test_documents.py", "test_imports.py", "test_inputs.py", "test_metrics.py"]
    collect_ignore += ["test_no_patient.py"]

# What a test builds by a call, and what by a command, may go into one cache.
os.environ["ANEURYSM_PATIENT_KEY"] = PATIENT_KEY

# How long an example takes is the machine's affair: tests are not timed.
# The same examples each time: what one run has shown, the next one shows too.
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")
