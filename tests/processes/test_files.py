"""The files of a folder, as the hashes and the sizes know them."""

from __future__ import annotations

from aneurysm.processes.files import tree_bytes, tree_files


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
