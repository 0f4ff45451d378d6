"""calibration.json as `aneurysm evaluate` writes it."""

from __future__ import annotations

import json
from pathlib import Path

from aneurysm.inference.calibration import checkpoint_digest
from aneurysm.labels import LABELS


def write_calibration(path: Path, checkpoints, temperatures=2.0, *, averaged=False, **changes) -> Path:
    """One temperature for all labels, or one for each; ``checkpoints`` may hold None."""
    values = temperatures if isinstance(temperatures, list) else [temperatures] * 14
    content = {
        "format_version": 2,
        "runs": [
            {"name": f"run{k}", "checkpoint": None if c is None else checkpoint_digest(c)}
            for k, c in enumerate(checkpoints)
        ],
        "averaged": averaged,
        "digest": None,
        "labels": {
            name: {"temperature": t, "threshold": 0.5, "calibrated_threshold": 0.5} for name, t in zip(LABELS, values)
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | changes))
    return path
