"""The files of a folder, as the content hash and the sizes know them."""

from __future__ import annotations

import hashlib
import json

from aneurysm.cache.layout import tree_bytes, tree_files
from aneurysm.cache.writer import content_hash


def write_tree(root):
    """Names whose order as text is not that of folders: "-" and "." come before "/"."""
    for number, name in enumerate(["b/z/deep", "b/a", "b-c/x", "b.d", "b0", "a", "zarr.json", "b/zarr.json"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(bytes([number]) * number)
    (root / "b" / "link").symlink_to(root / "a")
    (root / "b" / "round").symlink_to(root)
    (root / "empty").mkdir()
    return root


def test_files_come_folder_by_folder_with_their_sizes(tmp_path):
    root = write_tree(tmp_path)
    expected = sorted(p for p in root.rglob("*") if p.is_file())
    assert list(tree_files(root)) == [(p.relative_to(root).as_posix(), p.stat().st_size) for p in expected]
    assert len(expected) == 9
    assert tree_bytes(root) == sum(range(8)) + 5


def test_the_content_hash_is_of_all_files_but_the_metadata(tmp_path):
    """By its definition in docs/cache.md: caches that were written before must go on being found sound."""
    root, attributes = write_tree(tmp_path), {"b": 1, "a": [2.5], "content_hash": "old", "patient_key": "secret"}
    digest = hashlib.sha256(json.dumps({"a": [2.5], "b": 1}, separators=(",", ":")).encode())
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p != root / "zarr.json"):
        name = path.relative_to(root).as_posix()
        digest.update(b"\0" + name.encode() + b"\0" + str(path.stat().st_size).encode() + b"\0" + path.read_bytes())
    assert content_hash(root, attributes) == f"sha256:{digest.hexdigest()}"
