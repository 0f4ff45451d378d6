"""agreed_plan(): the plan of an array whose tasks were given none: made by the first to come, and taken by all others.

It lies in CACHE/.runs/<run>/deal-<key>/, where the key is of all that two tasks of one array have in common. On a disk
others wait while one makes it. Where locks don't reach, and in an object store, all who come before it is there make
one: the first that is whole counts. It goes with the last of its tasks, or when nothing of the data is missing: that of
tasks which build again what is done (redeal-<key>) only the first way.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from aneurysm.cache.layout import CacheLayout
from aneurysm.errors import StoreError
from aneurysm.precaching.destination import Destination
from aneurysm.precaching.plan import Plan, read_plan
from aneurysm.precaching.plan_folder import DOCUMENT, PlanFolder, plan_folder
from aneurysm.processes.locks import is_locked, take_lock
from aneurysm.processes.shared_folder import make_folder
from aneurysm.remote.client import ObjectStore

_DEAL: Final = "deal-"
_REDEAL: Final = "redeal-"
_LOCK: Final = ".lock"
_POLL_S: Final = 0.3


def agreed_plan(
    place: Destination, run: str, common: Any, make: Callable[[PlanFolder], Plan], *, again: bool = False
) -> Plan:
    """
    Return the plan of ``run``; where there is none yet, that which ``make`` writes, once, to the folder that it gets.

    ``common`` (of JSON) is what a plan depends on: a run that is begun with other options has another one. ``again``
    says that it deals out what is done.
    """
    key = hashlib.sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()[:12]
    name = f"{place.layout.runs.name}/{run}/{_REDEAL if again else _DEAL}{key}"
    folder = plan_folder(f"{place.name}/{name}")
    lock = place.layout.root / f"{name}{_LOCK}"
    if not place.url:
        make_folder(place.layout.runs)
    while DOCUMENT not in folder.names():
        if place.url:
            return make(folder)
        if (descriptor := take_lock(lock)) is None:
            time.sleep(_POLL_S)
            continue
        try:
            if DOCUMENT not in folder.names():
                return make(folder)
        finally:
            lock.unlink(missing_ok=True)
            os.close(descriptor)
    return read_plan(folder)


def remove_deals(place: Destination) -> None:
    """Remove the plans in the cache: nothing is missing, so that no task of theirs has anything to do."""
    plan_folder(f"{place.name}/{place.layout.plan.name}").remove()
    if place.url:
        _remove_objects(ObjectStore(place.url), place.layout.runs.name)
    else:
        _remove_folders(place.layout)


def _remove_folders(layout: CacheLayout) -> None:
    for path in layout.runs.glob(f"*/{_DEAL}*"):
        lock = path if path.name.endswith(_LOCK) else path.with_name(f"{path.name}{_LOCK}")
        if is_locked(lock):
            continue  # one is being made just now
        with suppress(OSError):  # another user's, in a folder that is not shared
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            path.parent.rmdir()


def _remove_objects(store: ObjectStore, runs: str) -> None:
    with suppress(StoreError):
        store.delete(o.key for o in store.find(runs) if f"/{_DEAL}" in o.key)
