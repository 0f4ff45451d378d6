"""What can't be reached, found or opened is said in a message: the URL, what was asked of it, and never a secret."""

from __future__ import annotations

import functools
import os
import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from aneurysm.cache.cache import open_cache
from aneurysm.errors import StoreError, StoreRefusedError, UsageError
from aneurysm.precaching.array_writer import CacheWriter
from aneurysm.remote import client
from aneurysm.remote.client import ObjectStore
from aneurysm.remote.url import checked_url, is_url
from tests.support.built import Built
from tests.support.command import Ran, call_cli
from tests.support.s3 import SECRET, Bucket

pytestmark = pytest.mark.usefixtures("s3_settings")


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries again as often as ever, but not for so long."""
    monkeypatch.setitem(client._RETRY, "backoff", {"init_backoff": timedelta(milliseconds=1), "base": 1.1})
    monkeypatch.setattr(client, "_STALLED_S", "300ms")
    monkeypatch.setitem(client._RETRY, "retry_timeout", timedelta(seconds=1))


def told(url: str, *options: object) -> Ran:
    """The command's end: a message and no traceback."""
    ran = call_cli("info", "--cache", url, *options)
    assert SECRET not in ran.text
    assert ran.err.startswith("aneurysm: ")
    return ran


@pytest.mark.parametrize(
    "url, word",
    [
        ("s3://key:hidden@bucket/cache", "credentials"),
        ("s3://hidden@bucket/cache", "credentials"),
        ("s3://bucket/cache?secret=hidden", "has no meaning"),
        ("s3:///cache", "names a bucket"),
        ("s3://bucket/a//b", "empty parts"),
        ("s3://bucket/a/../b", "dots"),
    ],
)
def test_urls_that_are_none_are_refused_without_repeating_secrets(url: str, word: str) -> None:
    with pytest.raises(UsageError, match=word) as caught:
        checked_url(url)
    assert "hidden" not in str(caught.value)
    assert told(url).code == 2


def test_urls_are_told_from_paths(tmp_path: Path) -> None:
    assert is_url("s3://bucket/cache")
    assert not any(is_url(place) for place in ("cache", "~/cache", "./s3", "C:/x", tmp_path, "a folder/s3://b"))
    with pytest.raises(UsageError, match="two slashes"):
        is_url(Path("s3://bucket/cache"))


@pytest.mark.parametrize("url", ["S3://b/hidden", "s3a://b/hidden", "gcs://b/hidden", "https://key:hidden@host/x"])
def test_a_url_of_another_kind_makes_no_folder(url: str, built: Built, tmp_path: Path) -> None:
    ran = call_cli("precache", "--data", built.data, "--cache", url, cwd=tmp_path)
    assert ran.code == 2
    assert "Known are s3://, gs://, az://" in ran.err
    assert "hidden" not in ran.text
    assert not any(tmp_path.glob("*:"))


def test_arrays_are_not_written_to_a_folder_of_the_name_of_a_url(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="to a folder"):
        CacheWriter("s3://bucket/cache")


def test_an_object_whose_name_leads_elsewhere_is_told(bucket: Bucket) -> None:
    bucket.put("data/series/1.2/../../../elsewhere.dcm", b"not here")
    ran = call_cli("precache", "--data", f"{bucket.url}/data", "--cache", f"{bucket.url}/cache", "--workers", 1)
    assert ran.code == 2
    assert "'..'" in ran.err
    assert "Traceback" not in ran.text


def test_there_is_no_such_bucket() -> None:
    ran = told("s3://there-is-none/cache")
    assert ran.code == 2
    assert "there is no bucket there-is-none" in ran.err


def test_there_is_no_cache_at_the_url(bucket: Bucket) -> None:
    ran = told(f"{bucket.url}/nothing")
    assert ran.code == 3
    assert f"there is no cache at {bucket.url}/nothing" in ran.err


def test_there_is_no_data_at_the_url(bucket: Bucket, tmp_path: Path) -> None:
    ran = call_cli("precache", "--data", f"{bucket.url}/nothing", "--cache", tmp_path / "cache")
    assert ran.code == 2
    assert f"there is nothing below {bucket.url}/nothing" in ran.err


def test_there_are_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    ran = told("s3://bucket/cache")
    assert ran.code == 2
    assert "there are no credentials" in ran.err


def test_there_is_no_such_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    ran = told("s3://bucket/cache")
    assert ran.code == 2
    assert "nobody" in ran.err


def test_a_profile_has_credentials_and_endpoint(
    stored: str, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(f"[profile lab]\nregion = eu-central-1\nendpoint_url = {s3_server}\n")
    (tmp_path / "credentials").write_text(f"[lab]\naws_access_key_id = k\naws_secret_access_key = {SECRET}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert len(open_cache(stored)) == 4


@pytest.mark.usefixtures("_impatient")
def test_nothing_answers_at_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    ran = told("s3://bucket/cache")
    assert ran.code == 2
    assert f"the store at 127.0.0.1:{port} can't be reached" in ran.err
    assert "s3://bucket/cache/" in ran.err


class Answers(BaseHTTPRequestHandler):
    """Gives one answer to everything, with a secret in it."""

    status, code, stalls = 403, "AccessDenied", False

    def do_GET(self) -> None:
        if self.stalls:
            time.sleep(5)
        body = f"<Error><Code>{self.code}</Code><AWSAccessKeyId>{SECRET}</AWSAccessKeyId></Error>".encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_HEAD = do_POST = do_DELETE = do_GET  # noqa: N815 - as http.server asks for them

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Answers]]:
    class Handler(Answers):
        pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    yield Handler
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
def test_the_store_does_not_let_us(answering: type[Answers], code: str, built: Built) -> None:
    answering.code = code
    ran = told("s3://bucket/cache")
    assert ran.code == 2
    assert f"was refused ({code})" in ran.err
    ran = call_cli("precache", "--data", built.data, "--cache", "s3://bucket/cache")
    assert ran.code == 2
    assert f"listing s3://bucket/cache was refused ({code})" in ran.err
    assert SECRET not in ran.text


@pytest.mark.usefixtures("_impatient")
def test_the_store_fails(answering: type[Answers]) -> None:
    answering.status, answering.code = 503, "SlowDown"
    with pytest.raises(
        StoreError, match="reading an object below s3://bucket/cache failed: the store answered SlowDown"
    ) as caught:
        ObjectStore("s3://bucket/cache").read("x")
    assert SECRET not in repr(caught.value)
    assert told("s3://bucket/cache").code == 9


@pytest.mark.usefixtures("_impatient")
def test_the_store_stalls(answering: type[Answers]) -> None:
    answering.stalls = True
    with pytest.raises(StoreRefusedError, match="does not answer"):
        ObjectStore("s3://bucket/cache").read("x")


class _Held:
    """Stands for a store; says when it is let go."""

    def __del__(self) -> None:
        os.write(self.pipe, b"let go")

    pipe = -1


def test_a_fork_lets_no_store_of_its_parent_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock of the store may be held by a thread of the parent, which would make the child wait for ever."""
    read, _Held.pipe = os.pipe()
    monkeypatch.setattr(client, "_opened", functools.lru_cache(lambda _url: _Held()))
    inherited = client._opened("s3://bucket")
    del inherited
    if (child := os.fork()) == 0:
        os.write(_Held.pipe, b"ran" if client._opened.cache_info().currsize == 0 else b"kept")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 100) == b"ran"
    client._opened.cache_clear()
    assert os.read(read, 100) == b"let go", "it would have said so"
    os.close(read)
    os.close(_Held.pipe)
