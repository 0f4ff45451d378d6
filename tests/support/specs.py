"""Cache specs of one's own: the default with some values changed."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path


def spec_text(name: str = "rsna-1mm") -> str:
    return (resources.files("aneurysm.cache_specs") / f"{name}.toml").read_text("utf-8")


def changed(text: str, key: str, value: str) -> str:
    """``text`` with the first line ``key = ...`` replaced."""
    new, count = re.subn(rf"(?m)^{re.escape(key)} = .*$", lambda _: f"{key} = {value}", text, count=1)
    assert count == 1, f"no key {key} in the spec"
    return new


def write_spec(path: Path, region_mm: tuple[float, float, float] | None = None, **values: str) -> Path:
    """A copy of the default spec with other values (as TOML source), by key; the first key of that name counts."""
    text = changed(spec_text(), "name", f'"{path.stem}"')
    for key, value in values.items():
        text = changed(text, key, value)
    if region_mm is not None:
        text += f'\n[region]\nanchor = "superior"\nsize_mm = {list(region_mm)}\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
