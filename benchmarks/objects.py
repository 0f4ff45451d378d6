"""Clients of object stores, beside each other on an S3 server of this machine: time, CPU, imports, dependencies.

    python -m benchmarks.objects --s3fs path/to/python --write

Each client runs in a process of its own, with 16 requests at once. s3fs pins another botocore than the rest of the
environment can have, so it is measured by the Python of an environment that holds it alone. The server (moto's) is
Python, one process, and takes most of the time: CPU seconds of the client say what it costs itself.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path

_BUCKET, _SMALL, _LARGE = "bucket", 500, 10
_SMALL_BYTES, _LARGE_BYTES, _THREADS = 10_000, 10_000_000, 16
_CLIENTS = ("obstore", "s3fs", "boto3")


def measure(name: str) -> dict[str, float | int | str]:
    """Return the figures of one client; runs in a process of its own."""
    before = time.perf_counter()
    put_all, get_all = {"obstore": _obstore, "s3fs": _s3fs, "boto3": _boto3}[name]()
    found: dict[str, float | int | str] = {"import_s": time.perf_counter() - before}
    put_all({"warm": b"x"})
    get_all(["warm"])
    for kind, n, size in (("small", _SMALL, _SMALL_BYTES), ("large", _LARGE, _LARGE_BYTES)):
        content = {f"{name}/{kind}/{i}": os.urandom(size) for i in range(n)}
        for what, call in (("put", lambda c=content: put_all(c)), ("get", lambda c=content: get_all(list(c)))):
            wall, cpu = time.perf_counter(), _cpu_s()
            result = call()
            found[f"{what}_{kind}_s"], found[f"{what}_{kind}_cpu_s"] = time.perf_counter() - wall, _cpu_s() - cpu
        assert result == list(content.values()), f"{name} brought back something else"
    names = _with_dependencies(name) | (_with_dependencies("boto3") if name == "obstore" else set())
    found["packages"] = len(names)
    found["megabytes"] = sum(_installed_bytes(n) for n in names) / 1e6
    found["version"] = distribution(name).version
    return found


def _obstore():
    import boto3
    import obstore
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Store

    store = S3Store(
        _BUCKET, endpoint=os.environ["AWS_ENDPOINT_URL"], client_options={"allow_http": True},
        credential_provider=Boto3CredentialProvider(boto3.Session()),
    )  # fmt: skip
    pool = ThreadPoolExecutor(_THREADS)

    def put(item):
        obstore.put(store, item[0], item[1], use_multipart=False)

    return (
        lambda content: list(pool.map(put, content.items())),
        lambda keys: list(pool.map(lambda key: bytes(obstore.get(store, key).bytes()), keys)),
    )


def _s3fs():
    import fsspec.config
    import s3fs

    fsspec.config.conf["gather_batch_size"] = _THREADS
    files = s3fs.S3FileSystem()
    return (
        lambda content: files.pipe({f"{_BUCKET}/{key}": value for key, value in content.items()}),
        lambda keys: list(_as_list(files.cat([f"{_BUCKET}/{key}" for key in keys]), keys)),
    )


def _as_list(found, keys):
    return [found] if isinstance(found, bytes) else [found[f"{_BUCKET}/{key}"] for key in keys]


def _boto3():
    import boto3
    from botocore.config import Config

    client = boto3.client("s3", config=Config(max_pool_connections=_THREADS))
    pool = ThreadPoolExecutor(_THREADS)

    def put(item):
        client.put_object(Bucket=_BUCKET, Key=item[0], Body=item[1])

    return (
        lambda content: list(pool.map(put, content.items())),
        lambda keys: list(pool.map(lambda key: client.get_object(Bucket=_BUCKET, Key=key)["Body"].read(), keys)),
    )


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _with_dependencies(name: str) -> set[str]:
    todo, found = [name], set()
    while todo:
        at = todo.pop().lower().replace("_", "-")
        try:
            distribution(at)
        except PackageNotFoundError:
            continue
        if at not in found:
            found.add(at)
            wanted = [r for r in requires(at) or [] if "extra ==" not in r]
            todo += ["".join(c if c.isalnum() or c in "-_." else " " for c in r).split()[0] for r in wanted]
    return found


def _installed_bytes(name: str) -> int:
    files = [Path(f.locate()) for f in distribution(name).files or ()]
    return sum(f.stat().st_size for f in files if f.is_file())


def serve() -> tuple[subprocess.Popen[bytes], str]:
    """Start moto's server; return it and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    for _ in range(300):
        try:
            urllib.request.urlopen(f"{address}/moto-api/", timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return process, address
    raise SystemExit("moto's server does not start")


def section(results: dict[str, dict[str, list[float]]], about: dict[str, str], command: str, repeats: int) -> str:
    lines = ["# Clients of object stores", ""]
    lines += [f"- {key}: {value}" for key, value in about.items()]
    lines += [
        f"- command: `{command}`, the least of {repeats} runs each, taking turns",
        "- 16 requests at once, to moto's server on the same machine: that is Python, and bounds the time of all;",
        "  CPU is the client's own",
        "- obstore takes credentials by boto3, which is counted with it: it reads no profile, and has no SSO",
        "",
        "| client | import s | put 500 x 10 kB, s (CPU) | get | put 10 x 10 MB, s (CPU) | get | packages | MB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, r in results.items():
        cells = [
            f"{min(r[f'{what}_{kind}_s']):.2f} ({min(r[f'{what}_{kind}_cpu_s']):.2f})"
            for kind in ("small", "large")
            for what in ("put", "get")
        ]
        lines.append(
            f"| {name} {r['version'][0]} | {min(r['import_s']):.2f} | {' | '.join(cells)} | {r['packages'][0]} "
            f"| {r['megabytes'][0]:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", choices=_CLIENTS, help=argparse.SUPPRESS)
    parser.add_argument("--s3fs", metavar="PYTHON", help="the Python of an environment that has s3fs")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="put the section into benchmarks/RESULTS.md")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    from benchmarks.table import machine, write_section

    server, address = serve()
    env = os.environ | {
        "AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    results: dict[str, dict[str, list]] = {}
    try:
        request = urllib.request.Request(f"{address}/{_BUCKET}", method="PUT")
        urllib.request.urlopen(request, timeout=10).close()
        for _ in range(options.repeats):
            for name in _CLIENTS:
                if name == "s3fs" and options.s3fs is None:
                    continue
                python = options.s3fs if name == "s3fs" else sys.executable
                ran = subprocess.run(
                    [python, str(Path(__file__).absolute()), "--measure", name],
                    env=env, capture_output=True, text=True, check=False,
                )  # fmt: skip
                assert ran.returncode == 0, ran.stderr
                for key, value in json.loads(ran.stdout).items():
                    results.setdefault(name, {}).setdefault(key, []).append(value)
    finally:
        server.kill()
        server.wait()
    command = f"python -m benchmarks.objects{' --s3fs PYTHON' if options.s3fs else ''}"
    text = section(results, machine(("obstore", "boto3", "moto")), command, options.repeats)
    print(text)
    if options.write:
        write_section(text)


if __name__ == "__main__":
    main()
