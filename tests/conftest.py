"""Settings of all tests."""

from __future__ import annotations

from hypothesis import settings

# How long an example takes is the machine's affair: tests are not timed.
# The same examples each time: what one run has shown, the next one shows too.
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")
