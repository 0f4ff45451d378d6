"""Settings of all tests."""

from __future__ import annotations

from hypothesis import settings

# How long an example takes is the machine's affair: tests are not timed.
settings.register_profile("project", deadline=None)
settings.load_profile("project")
