"""Fixtures: a real S3 server on this machine, and what is asked of it beside the program.

A module whose tests use it says ``pytestmark = pytest.mark.usefixtures("s3_settings")``.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from aneurysm.cache.volume import close_volumes
from aneurysm.remote import client as remote_client
from tests.support.built import Built

SECRET = "a-secret-that-must-not-be-told"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """moto's server, a process of its own; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/moto-api/", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, "moto's server does not start"
                time.sleep(0.1)
        yield address
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def s3_settings(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Credentials and endpoint by the environment; nothing of this machine's user; a scratch folder to look into."""
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_SESSION_TOKEN", "ANEURYSM_LOCAL_CACHE_GB"):
        monkeypatch.delenv(name, raising=False)
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "some-key",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
        "ANEURYSM_PATIENT_KEY": "the same in every cache, else no two could have the same bytes",
        "ANEURYSM_LOCAL_CACHE": str(tmp_path / "local"),
        "TMPDIR": str(scratch),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", None)
    remote_client._opened.cache_clear()
    yield
    remote_client._opened.cache_clear()
    close_volumes()


@dataclass(frozen=True)
class Bucket:
    """A bucket, as boto3 shows it."""

    name: str
    client: Any

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    def keys(self, prefix: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        return [o["Key"] for page in pages for o in page.get("Contents", ())]

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=content)

    def get(self, key: str) -> bytes:
        return self.client.get_object(Bucket=self.name, Key=key)["Body"].read()

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=key)

    def upload(self, folder: Path, prefix: str) -> str:
        """Copy a folder to the bucket; return its URL."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"{self.url}/{prefix}"

    def download(self, prefix: str, folder: Path) -> Path:
        """Copy what is below a prefix to a folder."""
        for key in self.keys(f"{prefix}/"):
            path = folder / key.removeprefix(f"{prefix}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.get(key))
        return folder


@pytest.fixture
def bucket(s3_settings: None, s3_server: str) -> Bucket:
    """A new bucket."""
    import boto3

    client = boto3.client("s3", endpoint_url=s3_server)
    name = f"bucket-{uuid4().hex[:12]}"
    client.create_bucket(Bucket=name)
    return Bucket(name, client)


@pytest.fixture(scope="session")
def _stored_once(s3_server: str, built: Built) -> str:
    import boto3

    options = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=s3_server, **options)
    client.create_bucket(Bucket="built")
    return Bucket("built", client).upload(built.cache, "cache")


@pytest.fixture
def stored(_stored_once: str) -> str:
    """The URL of a copy of the cache of `built`. Read only."""
    return _stored_once


def copied_bytes(folder: Path) -> int:
    """How much a local copy holds."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
