"""A host that says what a test wants it to; it can be sent to processes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aneurysm.processes.host import Host


@dataclass(frozen=True)
class Files:
    """Texts by path; a path whose text is `HANGS` does not answer."""

    texts: Mapping[str, str]

    def __call__(self, path: str) -> str:
        text = self.texts.get(path, "")
        if text == HANGS:
            time.sleep(3600)
        return text


@dataclass(frozen=True)
class Tools:
    """What tools write, by their names."""

    texts: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, command: Sequence[str]) -> str:
        return self.texts.get(command[0], "")


HANGS = "hangs"


def fake_host(
    files: Mapping[str, str], tools: Mapping[str, str] | None = None, environ: Mapping[str, str] | None = None
) -> Host:
    return Host(Files(files), Tools(tools or {}), environ or {})
