"""Settings of all tests."""

from __future__ import annotations

import os

from hypothesis import settings

from tests.support.command import PATIENT_KEY

pytest_plugins = [f"tests.support.{name}" for name in ("built", "s3", "painted", "report_cache")]

# What a test builds by a call, and what by a command, may go into one cache.
os.environ["ANEURYSM_PATIENT_KEY"] = PATIENT_KEY

# How long an example takes is the machine's affair: tests are not timed.
# The same examples each time: what one run has shown, the next one shows too.
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")
