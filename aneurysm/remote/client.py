"""ObjectStore: what is asked of an object store, by obstore; its errors in words that name the URL and no secret.

Every request is tried again for a while, and ends by a time limit.

A process that was forked after its parent used obstore would wait for ever for threads that only the parent has.
Such a process gets an error instead: processes that are to use a store are to be spawned.

Credentials, region and endpoint of S3 are found by boto3, as every AWS tool finds them (environment, profile, SSO,
role): obstore itself reads no profile.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from aneurysm.errors import StoreError, StoreRefusedError
from aneurysm.remote.url import checked_url

_REQUESTS: Final = 16
"""Requests under way at once, of one call."""
_RETRY: Final[dict[str, Any]] = {
    "max_retries": 6,
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=4), "base": 2},
    "retry_timeout": timedelta(seconds=20),
}
_CONNECT_S: Final = "5s"
_STALLED_S: Final = "15s"
_WRITE_S: Final = "300s"
_CODE: Final = re.compile(r"<Code>(\w{1,60})</Code>")
_STATUS: Final = re.compile(r"status code: (\d{3} [A-Za-z ]{1,40})")
_OURS: Final = re.compile(
    r"(volumes|rejected|\.building|\.seconds|\.runs)(/.*)?|[\w.-]+\.(toml|csv)|\.patient-key(-check)?|series|segmentations"
    r"|[\d.]+(_cowseg)?\.nii(\.gz)?"
)
"""Objects that have names of our making, or of the layout's; masks are named by UIDs."""
_MULTIPART: Final = 256 * 2**20
_In = TypeVar("_In")
_Out = TypeVar("_Out")
_pid_of_use: int | None = None


@dataclass(frozen=True, slots=True)
class RemoteObject:
    """An object of a listing; ``key`` is relative to the URL that was listed."""

    key: str
    size: int
    e_tag: str
    modified: datetime


class ObjectStore:
    """
    The objects below a URL. It may be used by threads, and pickled: what travels is the URL.

    Raises
    ------
    UsageError
        The URL is none, or has credentials in it.
    StoreRefusedError
        From every method: there is no such bucket, the store can't be reached, or it does not let us.
    StoreError
        From every method: it fails, also when it is asked again.
    """

    def __init__(self, url: str) -> None:
        self.url = checked_url(url)

    def __reduce__(self) -> tuple[type[ObjectStore], tuple[str]]:
        return (type(self), (self.url,))

    def find(self, prefix: str = "") -> list[RemoteObject]:
        """Return all objects below ``prefix`` (a folder), sorted by key."""
        with self._told("listing", prefix):
            import obstore

            found = obstore.list(_opened(self.url, writing=False), prefix or None, chunk_size=1000)
            objects = [
                RemoteObject(o["path"], o["size"], str(o["e_tag"] or ""), o["last_modified"])
                for chunk in found
                for o in chunk
            ]
        folders = {parent for o in objects for parent in _parents(o.key)}
        # Some tools mark a folder by an empty object of its name, which a disk could not hold beside the folder.
        return sorted((o for o in objects if o.size or o.key not in folders), key=lambda o: o.key)

    def folders(self, prefix: str) -> tuple[list[str], list[str]]:
        """Return the names of the folders, and of the objects, directly in ``prefix``."""
        with self._told("listing", prefix):
            import obstore

            found = obstore.list_with_delimiter(_opened(self.url, writing=False), prefix or None)
        return (
            sorted(p.rstrip("/").rsplit("/", 1)[-1] for p in found["common_prefixes"]),
            sorted(o["path"].rsplit("/", 1)[-1] for o in found["objects"]),
        )

    def exists(self, key: str) -> bool:
        """Return True if there is an object."""
        return self.describe(key) is not None

    def describe(self, key: str) -> RemoteObject | None:
        """Return what a listing would say of an object; None if there is none."""
        try:
            with self._told("asking for", key):
                import obstore

                o = obstore.head(_opened(self.url, writing=False), key)
        except FileNotFoundError:
            return None
        return RemoteObject(key, o["size"], str(o["e_tag"] or ""), o["last_modified"])

    def read(self, key: str, first_bytes: int | None = None) -> bytes:
        """Return an object, or the beginning of one that is not empty. Raises `FileNotFoundError` if there is none."""
        with self._told("reading", key):
            import obstore

            store = _opened(self.url, writing=False)
            if first_bytes is None:
                return bytes(obstore.get(store, key).bytes())
            return bytes(obstore.get_range(store, key, start=0, length=first_bytes))

    def download(self, key: str, path: Path) -> None:
        """Write an object to a file. Raises `FileNotFoundError` if there is none, `OSError` of the local disk."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            chunks = self._chunks(key)
            for chunk in chunks:
                file.write(chunk)

    def download_if_there(self, key: str, path: Path) -> None:
        """Write an object to a file, which is gone afterwards if there is no such object."""
        try:
            self.download(key, path)
        except FileNotFoundError:
            path.unlink()

    def _chunks(self, key: str) -> Iterator[Any]:
        with self._told("reading", key):
            import obstore

            yield from obstore.get(_opened(self.url, writing=False), key).stream(min_chunk_size=4 * 2**20)

    def download_all(self, paths: Mapping[str, Path]) -> None:
        """Download objects by key, many at once."""
        self.each(lambda item: self.download(*item), paths.items())

    def write(self, key: str, content: bytes | Path) -> str:
        """Write an object, from a file if it is a path: as a whole, or not at all. Return its ETag."""
        with self._told("writing", key):
            import obstore

            # In one request, if it may be: parts of an upload that was killed would stay, unseen and paid for.
            large = isinstance(content, Path) and content.stat().st_size > _MULTIPART
            put = obstore.put(_opened(self.url, writing=True), key, content, use_multipart=large)
        return str(put["e_tag"] or "")

    def create(self, key: str, content: bytes) -> bool:
        """Write an object unless there is one; say whether it was written."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with self._told("writing", key):
            try:
                obstore.put(_opened(self.url, writing=True), key, content, mode="create")
            except AlreadyExistsError:
                return False
        return True

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that are not there are none the worse for it."""
        there = list(keys)
        for start in range(0, len(there), 1000):
            with self._told("deleting below", ""):
                import obstore

                obstore.delete(_opened(self.url, writing=True), there[start : start + 1000])

    def each(self, work: Callable[[_In], _Out], items: Iterable[_In]) -> list[_Out]:
        """Return ``work`` of each item, in their order, many at once; what one raises ends the others."""
        given = list(items)
        if len(given) < 2:
            return [work(item) for item in given]
        with ThreadPoolExecutor(min(_REQUESTS, len(given)), "objects") as pool:
            try:
                return list(pool.map(work, given))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    @contextmanager
    def _told(self, doing: str, key: str) -> Iterator[None]:
        """Turn obstore's errors into ours. Their text is not passed on: it holds the request, keys included."""
        try:
            yield
        except ModuleNotFoundError:
            raise
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise self._refused("NoSuchBucket", doing, key) from None
            raise FileNotFoundError(f"there is no {self._called(key)}") from None
        except Exception as error:
            from obstore.exceptions import BaseError, InvalidPathError

            if isinstance(error, InvalidPathError):
                raise StoreRefusedError(
                    f"{doing} {self._called(key)} failed: there is an object whose name can't be a file's, such as one "
                    "with '..' in it. Remove it"
                ) from None
            # Some of obstore's errors are Python's own (PermissionError, TimeoutError), others below its BaseError.
            if not isinstance(error, BaseError | PermissionError | TimeoutError | ConnectionError):
                raise
            text = str(error)
            code = found.group(1) if (found := _CODE.search(text)) else ""
            if code == "NoSuchBucket":
                raise self._refused(code, doing, key) from None
            status = found.group(1).strip() if (found := _STATUS.search(text)) else ""
            if status[:3] in ("301", "400", "401", "403") or code in ("AccessDenied", "InvalidAccessKeyId"):
                raise self._refused(code or status, doing, key) from None
            if status:
                message = (
                    f"{doing} {self._called(key)} failed: the store answered {code or status}, also when asked again"
                )
                raise StoreError(message) from None
            raise StoreRefusedError(
                f"{doing} {self._called(key)} failed: the store{_endpoint_text()} can't be reached, or does not "
                "answer. Is the endpoint right (AWS_ENDPOINT_URL), and the network there?"
            ) from None

    def _called(self, key: str) -> str:
        """Return how messages call an object: of data not by its name, which may be a patient's."""
        if not key:
            return self.url
        return f"{self.url}/{key}" if _OURS.fullmatch(key) else f"an object below {self.url}"

    def _refused(self, code: str, doing: str, key: str) -> StoreRefusedError:
        bucket = urlsplit(self.url).netloc
        if code == "NoSuchBucket":
            return StoreRefusedError(f"there is no bucket {bucket}{_endpoint_text()}, which {self.url} names")
        return StoreRefusedError(
            f"{doing} {self._called(key)} was refused ({code}). Do the credentials (AWS_PROFILE, or AWS_ACCESS_KEY_ID "
            "and AWS_SECRET_ACCESS_KEY), their permissions and the region (AWS_REGION) fit the bucket?"
        )


def _parents(key: str) -> list[str]:
    return [key[:i] for i, character in enumerate(key) if character == "/"]


def _endpoint_text() -> str:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    # Without what an endpoint might have of credentials.
    return f" at {urlsplit(endpoint).netloc.rsplit('@', 1)[-1]}" if endpoint else ""


def _open(url: str, *, writing: bool) -> Any:
    """Return obstore's store at ``url``."""
    from obstore.store import from_url

    global _pid_of_use
    if _pid_of_use not in (None, os.getpid()):
        raise StoreError(
            f"{url} is asked for in a process that was forked from one that used an object store: start it with the "
            "method spawn or forkserver"
        )
    _pid_of_use = os.getpid()
    # Of a reading, what stalls is what counts; a write is one long request, of which nothing is heard until its end.
    client: dict[str, Any] = {"connect_timeout": _CONNECT_S, "allow_http": True}
    client |= {"timeout": _WRITE_S} | ({} if writing else {"read_timeout": _STALLED_S})
    given: dict[str, Any] = {"client_options": client, "retry_config": _RETRY}
    return from_url(url, **given, **(aws_options(url) if url.startswith("s3://") else {}))


_opened = lru_cache(maxsize=32)(_open)
"""One store for each URL and process."""
_inherited: Final[list[Any]] = []


def _leave_inherited() -> None:
    """
    Forget the stores that the parent opened, which would answer nothing here; but let none of them go.

    To end one takes locks of its pool of connections. A thread of the parent may have held one of them at the fork, and
    here nobody will ever release it: the child would wait for ever before it has run a line of its own.
    """
    global _opened
    _inherited.append(_opened)
    _opened = lru_cache(maxsize=32)(_open)


os.register_at_fork(after_in_child=_leave_inherited)


def aws_options(url: str) -> dict[str, Any]:
    """Return credentials, region and endpoint for a bucket of S3; raise `StoreRefusedError` if there are none."""
    import boto3
    import botocore.session
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider

    session = botocore.session.get_session()
    found: dict[str, Any] = {}
    try:
        profile = session.get_scoped_config()
        endpoint = (
            os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or profile.get("endpoint_url")
        )
        if endpoint:
            found["endpoint"] = endpoint
        found["region"] = os.environ.get("AWS_REGION") or session.get_config_variable("region") or "us-east-1"
        if os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true"):
            return found | {"skip_signature": True}
        credentials = session.get_credentials()
        if credentials is None:
            raise StoreRefusedError(
                f"{url}: there are no credentials. Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; "
                "AWS_SKIP_SIGNATURE=true for a public bucket"
            )
        credentials.get_frozen_credentials()  # an expired login shows here, in words
    except BotoCoreError as error:
        raise StoreRefusedError(f"{url}: {error}") from None
    return found | {"credential_provider": Boto3CredentialProvider(boto3.Session(botocore_session=session))}
