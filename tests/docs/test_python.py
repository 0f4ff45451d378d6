"""The Python in the documentation runs as it stands there."""

from __future__ import annotations

import re
import shutil

import pytest

from tests.support.run_data import ROOT


@pytest.mark.parametrize(
    ("page", "shown"), [("README.md", "voxels.ndim == 3"), ("docs/patches.md", "given.image.ndim == 5")]
)
def test_python_blocks_run(page, shown, built, tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    shutil.copytree(built.cache, tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    assert eval(shown, names)
