"""Folders that several users write to: what is made in one can be written by its group, whatever the umask.

A folder is shared if its set-group-ID bit and its group's write permission are set: the kernel then gives new files its
group, and we give that group the permissions which a umask may have taken away. In all other folders the umask decides.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

_SHARED: Final = stat.S_ISGID | stat.S_IWGRP
_FILE: Final = stat.S_IRGRP | stat.S_IWGRP
_FOLDER: Final = stat.S_ISGID | stat.S_IRWXG


def share(target: Path, folder: Path) -> None:
    """Let the group write to ``target``, which was just made in ``folder``, if that is shared."""
    if folder.stat().st_mode & _SHARED != _SHARED:
        return
    mode = target.stat().st_mode
    wanted = mode | (_FOLDER if stat.S_ISDIR(mode) else _FILE)
    if wanted != mode:
        with suppress(PermissionError):  # another user was faster to make it, who shares it as well
            target.chmod(stat.S_IMODE(wanted))


def share_tree(tree: Path, folder: Path) -> None:
    """Do as `share` does, with ``tree`` and with all that is below it."""
    if folder.stat().st_mode & _SHARED != _SHARED:
        return
    for root, _, files in os.walk(tree):
        share(Path(root), folder)
        for name in files:
            share(Path(root, name), folder)


def make_folder(path: Path) -> None:
    """Make a folder in one that is there, unless it is there itself. Raises `OSError`."""
    try:
        path.mkdir()
    except FileExistsError:
        if not path.is_dir():
            raise
    else:
        share(path, path.parent)


def describe_denial(error: OSError) -> str:
    """Return what error it was; of a denied access also on what, whose that is, and what shares a cache among users."""
    if not isinstance(error, PermissionError) or error.filename is None:
        return error.strerror or str(error)
    path = Path(os.fsdecode(error.filename)).absolute()
    while True:
        try:
            status = path.stat()
            break
        except OSError:
            if path == path.parent:
                return error.strerror or str(error)
            path = path.parent  # it is to be made there, or can't be seen from outside
    return (
        f"{error.strerror}: {path} belongs to user {_user(status.st_uid)}, group {group_name(status.st_gid)} (mode "
        f"{stat.S_IMODE(status.st_mode):04o}), and this is user {_user(os.geteuid())}. For a cache that a group shares "
        "its owner gives CACHE to the group (chgrp -R GROUP CACHE), and lets it write there now and later (chmod -R "
        "g+rwX CACHE; find CACHE -type d -exec chmod g+s {} +)"
    )


def _user(number: int) -> str:
    import pwd

    with suppress(KeyError):
        return pwd.getpwuid(number).pw_name
    return str(number)


def group_name(number: int) -> str:
    """Return the name of a group, or its number if it has none."""
    import grp

    with suppress(KeyError):
        return grp.getgrgid(number).gr_name
    return str(number)
