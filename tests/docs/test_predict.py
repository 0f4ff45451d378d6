"""What docs/predict.md says to type runs as it stands there."""

import re
import shlex

import numpy as np
import pytest

from aneurysm.precaching.run import precache
from tests.support.acquisition import acquire
from tests.support.calibrations import write_calibration
from tests.support.checkpoints import write_checkpoint
from tests.support.command import call_in_process
from tests.support.pattern import lone_blob
from tests.support.run_data import ROOT
from tests.support.series import write_series

PAGE = (ROOT / "docs" / "predict.md").read_text()


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with the runs, data and cache that the page speaks of; one series is bad."""
    root = tmp_path_factory.mktemp("work")
    for k in range(2):
        folder = root / "runs" / f"fold{k}" / "checkpoints"
        best = write_checkpoint(folder / "best.ckpt", k)
        write_checkpoint(folder / "last.ckpt", k + 2)
        write_calibration(folder.parent / "evaluation" / "calibration.json", [best])
    for name, modality in (("cta", "CTA"), ("mra", "MRA"), ("t2", "MRI T2")):
        write_checkpoint(root / "runs" / name / "checkpoints" / "best.ckpt", 7, modalities=[modality])
    for k in range(2):
        acquisition = acquire("axial", slices=16)
        write_series(root / "data" / "series" / f"1.2.{k}", acquisition, lone_blob(acquisition.centre), uid=f"1.2.{k}")
    precache(root / "data", root / "cache", workers=0)
    write_series(root / "data" / "series" / "1.2.7", acquire(slices=1), lone_blob(np.zeros(3)), uid="1.2.7")
    return root


@pytest.mark.parametrize("command", re.findall(r"^    (aneurysm .*)", PAGE, re.MULTILINE))
def test_commands(command, work):
    arguments = shlex.split(command, comments=True)[1:]
    ran = call_in_process(*arguments, cwd=work)
    assert ran.code == (8 if "data" in arguments else 0), ran.text
    assert "Not for clinical use" in ran.err


def test_python(work, monkeypatch, capsys):
    monkeypatch.chdir(work)
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    exec(compile(block, "docs/predict.md", "exec"), {})
    assert "1.2.7 too_few_slices 0.43" in capsys.readouterr().out


def test_every_option_is_described():
    shown = call_in_process("predict", "--help").out
    options = set(re.findall(r"--[a-z-]+", shown)) - {"--help"}
    assert options
    assert {option for option in options if f"`{option}" not in PAGE} == set()
