"""Batches: the right voxels and labels, and the same ones for any number of workers and ranks, and after a restart."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
from itertools import islice

import numpy as np
import psutil
import pytest
import torch
import zarr

from aneurysm.cache.volume import close_volumes
from aneurysm.errors import LoaderError, SamplingError
from aneurysm.patches.batch import Batch
from aneurysm.patches.loader import PatchLoader
from aneurysm.patches.plan import Sampling
from tests.support.cache_paths import volume_path
from tests.support.noise_cache import add_volume, finish_cache

SHAPE = (32, 40, 48)
MIXED = Sampling(lesion=1, vessel=1, foreground=1, uniform=1, balance="label")

# torch forks its workers; this process has threads of torch and pytest-timeout, which the workers don't touch.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes:UserWarning"),
]


def loader(cache, *, batch=4, steps=5, shape=SHAPE, **options) -> PatchLoader:
    return PatchLoader(
        cache,
        volumes=range(len(cache)),
        patch=shape,
        batch_size=batch,
        steps=steps,
        **{"seed": 7, "sampling": MIXED, **options},
    )


def same(a: Batch, b: Batch) -> bool:
    left, right = (vars(batch) | vars(batch.lesions) for batch in (a, b))
    assert left.keys() == right.keys() > {"image", "sample", "site", "zyx", "inner"}
    return all(
        torch.equal(left[name], right[name]) if isinstance(left[name], torch.Tensor) else left[name] == right[name]
        for name in left.keys() - {"lesions"}
    )


def all_same(left, right) -> bool:
    left, right = list(left), list(right)
    return len(left) == len(right) > 0 and all(map(same, left, right))


@pytest.fixture(scope="module")
def reference(small_cache) -> list[list[Batch]]:
    """The batches of three epochs, read in this process."""
    here = loader(small_cache, vessels=True)
    return [list(here) for _ in range(3)]


def test_voxels_are_those_of_the_volume_padded_with_air(small_cache, reference):
    assert len(reference[0]) > 0
    for batch in reference[0]:
        assert batch.image.shape == (4, 1, *SHAPE)
        assert batch.image.dtype == torch.int16
        for i, uid in enumerate(batch.series_uid):
            assert small_cache.uids[batch.volume[i]] == uid
            array = zarr.open_array(volume_path(small_cache.root, uid) / "0", mode="r")
            padded = np.pad(array[...], 50, constant_values=-1000)
            start = batch.start[i].numpy() + 50
            expected = padded[tuple(slice(s, s + n) for s, n in zip(start, SHAPE))]
            assert np.array_equal(batch.image[i, 0].numpy(), expected)


def test_units_and_masks_belong_to_each_series(small_cache, reference):
    seen = set()
    for batch in [b for epoch in reference for b in epoch]:
        assert batch.scale.tolist() == [2.0] * 4
        assert batch.offset.tolist() == [-10.0] * 4
        assert batch.window.tolist() == [[-100.0, 900.0]] * 4
        assert batch.fill.tolist() == [-1000.0] * 4
        for i, uid in enumerate(batch.series_uid):
            assert bool(batch.is_ct[i]) == (small_cache.modalities[batch.volume[i]] == "CTA")
            assert bool(batch.has_vessels[i]) == (uid == "1.4")
            assert set(batch.vessels[i].unique().tolist()) == ({0, 5} if uid == "1.4" else {0})
            seen.add(uid)
            expected = small_cache[batch.volume[i]].read_normalised(tuple(batch.start[i].tolist()), SHAPE)
            assert np.allclose(batch.normalised()[i, 0].numpy(), expected, atol=1e-6)
    assert "1.4" in seen


def test_lesions_are_where_the_patch_has_them(small_cache, reference):
    about = 0
    for batch in reference[0]:
        for i in range(4):
            of = batch.lesions.sample == i
            rows = small_cache.lesions_of(int(batch.volume[i]))
            back = batch.lesions.zyx[of] + batch.start[i]
            assert np.allclose(back.numpy(), small_cache.lesion_zyx[rows], atol=1e-3)
            assert batch.lesions.site[of].tolist() == small_cache.lesion_site[rows].tolist()
            if batch.why[i] == "lesion":
                about += 1
                zyx = batch.lesions.zyx[of]
                held = ((zyx >= 2.5) & (zyx <= torch.tensor(SHAPE) - 3.5)).all(dim=1)
                sites = batch.lesions.site[of][held]
                assert len(sites) > 0
                assert batch.targets[i, sites].eq(1).all()
                assert batch.targets[i, 13] == 1
                assert not batch.ignore[i, 13]
    assert about >= 2


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.timeout(120)
def test_any_number_of_workers_gives_the_same_batches_in_every_epoch(small_cache, reference, workers):
    others = loader(small_cache, workers=workers, vessels=True)
    for epoch in reference:
        assert all_same(others, epoch)
    assert not all_same(reference[0], reference[1])


@pytest.mark.timeout(120)
def test_two_ranks_together_read_what_one_does(small_cache):
    alone = list(loader(small_cache, batch=4))
    assert len(alone) > 0
    left, right = (list(loader(small_cache, batch=2, rank=r, ranks=2, workers=r)) for r in (0, 1))
    for whole, a, b in zip(alone, left, right, strict=True):
        assert torch.equal(whole.image, torch.cat([a.image, b.image]))
        assert torch.equal(whole.targets, torch.cat([a.targets, b.targets]))
        assert torch.equal(whole.seeds, torch.cat([a.seeds, b.seeds]))
        assert whole.series_uid == a.series_uid + b.series_uid
        assert whole.index.tolist() == a.index.tolist() + b.index.tolist()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.timeout(120)
def test_a_run_goes_on_in_mid_epoch(small_cache, reference, workers):
    first = loader(small_cache, workers=workers, vessels=True)
    list(first)
    before = list(islice(iter(first), 2))
    state = first.state_dict()
    assert (state["epoch"], state["step"]) == (1, 2)
    again = loader(small_cache, workers=2 - workers, vessels=True)
    again.load_state_dict(state)
    assert all_same([*before, *again], reference[1])
    assert all_same(again, reference[2])


def test_an_epoch_can_be_asked_for_and_one_that_was_left_is_followed_by_the_next(small_cache, reference):
    some = loader(small_cache, vessels=True)
    some.set_epoch(2)
    assert all_same(some, reference[2])
    some.set_epoch(0)
    assert same(next(iter(some)), reference[0][0])
    assert some.epoch == 0
    assert all_same(some, reference[1])


def test_a_state_of_another_run_is_refused(small_cache):
    state = loader(small_cache).state_dict()
    with pytest.raises(SamplingError, match="seed 7, now 8"):
        loader(small_cache, seed=8).load_state_dict(state)
    with pytest.raises(SamplingError, match="batch_size 4, now 2"):
        loader(small_cache, batch=2).load_state_dict(state)
    for other in ({"steps": 2}, {"sampling": Sampling(lesion=1)}):
        with pytest.raises(SamplingError, match="another sampling"):
            loader(small_cache, **other).load_state_dict(state)
    del state["drawn_from"]  # as it was before there was this
    loader(small_cache).load_state_dict(state)


def test_what_is_not_known_is_ignored(tmp_path):
    add_volume(tmp_path, "1.1", unplaced=[(3, "image_not_in_series")])
    add_volume(tmp_path, "1.2", labels=False)
    add_volume(tmp_path, "1.3", unplaced=[(4, "outside_volume")])
    add_volume(tmp_path, "1.4", sites=(5,), places=[(35, 40, 45)], unplaced=[(5, "outside_image")])
    add_volume(tmp_path, "1.5")
    cache = finish_cache(tmp_path)
    (batch,) = loader(cache, batch=5, steps=1, sampling=Sampling())
    unknown = {uid: torch.where(u)[0].tolist() for uid, u in zip(batch.series_uid, batch.unknown)}
    assert unknown == {"1.1": [3, 13], "1.2": list(range(14)), "1.3": [], "1.4": [5, 13], "1.5": []}
    assert torch.equal(batch.ignore & ~batch.unknown & (batch.targets == 1), torch.zeros(5, 14, dtype=torch.bool))
    for i, uid in enumerate(batch.series_uid):
        if uid in ("1.1", "1.2"):
            assert torch.equal(batch.ignore[i], batch.unknown[i])


class TestDamage:
    def damaged(self, tmp_path, n=2):
        for i in range(8):
            add_volume(tmp_path, f"1.{i}")
        cache = finish_cache(tmp_path)
        for i in range(n):
            path = volume_path(tmp_path, f"1.{i}") / "0/c/0/0/0"
            path.write_bytes(bytes(path.stat().st_size))
        return cache

    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.timeout(120)
    def test_a_damaged_volume_is_replaced_and_told_once(self, tmp_path, caplog, workers):
        cache = self.damaged(tmp_path)
        some = loader(cache, batch=8, steps=2, workers=workers)
        with caplog.at_level(logging.WARNING):
            batches = list(some)
        assert some.damaged == {"1.0", "1.1"}
        assert [r.getMessage().split(":")[0] for r in caplog.records] in (
            ["series 1.0", "series 1.1"], ["series 1.1", "series 1.0"],
        )  # fmt: skip
        for batch in batches:
            assert len(batch) == 8
            assert not {"1.0", "1.1"} & set(batch.series_uid)
            for i in range(8):
                expected = cache[batch.volume[i]].read(tuple(batch.start[i].tolist()), SHAPE)
                assert np.array_equal(batch.image[i, 0].numpy(), expected)
        assert all_same(batches, list(loader(cache, batch=8, steps=2)))

    def test_a_volume_that_is_gone_is_replaced_too(self, tmp_path):
        cache = self.damaged(tmp_path, 0)
        shutil.rmtree(volume_path(tmp_path, "1.3"))
        some = loader(cache, batch=8, steps=1)
        (batch,) = some
        assert some.damaged == {"1.3"}
        assert "1.3" not in batch.series_uid

    @pytest.mark.parametrize("workers", [0, 1])
    @pytest.mark.timeout(120)
    def test_too_many_end_the_run(self, tmp_path, workers):
        cache = self.damaged(tmp_path, 4)
        with pytest.raises(LoaderError, match=r"\d series can't be read, more than the 2 .*aneurysm verify"):
            list(loader(cache, batch=8, max_damaged=2, workers=workers))

    @pytest.mark.parametrize("workers", [0, 1])
    @pytest.mark.timeout(120)
    def test_a_cache_of_nothing_but_damage_ends_the_run_in_one_line(self, tmp_path, workers):
        cache = self.damaged(tmp_path, 8)
        with pytest.raises(
            LoaderError, match=r"^10 volumes one after the other can't be read; the last: 1\.\d"
        ) as told:
            list(loader(cache, workers=workers, max_damaged=100))
        assert "\n" not in str(told.value)

    @pytest.mark.parametrize(
        "kind", ["cut short", "a bit flipped", "removed", "built again with other voxels", "emptied"]
    )
    def test_a_volume_that_is_changed_while_it_is_read_from_is_replaced_by_others(self, tmp_path, kind):
        """In place, under an open handle: no wrong voxel, and no SIGBUS."""
        cache = self.damaged(tmp_path, 0)
        before = list(loader(cache, batch=2, steps=16))
        assert not any(batch.damaged for batch in before)
        victim = volume_path(tmp_path, "1.2")
        shard = victim / "0" / "c" / "0" / "0" / "0"
        if kind == "cut short":
            os.truncate(shard, shard.stat().st_size // 3)
        elif kind == "emptied":
            os.truncate(shard, 0)
        elif kind == "a bit flipped":
            with shard.open("r+b") as file:
                for at in range(0, shard.stat().st_size, 1000):
                    file.seek(at)
                    byte = file.read(1)[0]
                    file.seek(at)
                    file.write(bytes([byte ^ 4]))
        else:
            if kind == "removed":
                shutil.rmtree(victim)
            else:
                metadata = victim / "zarr.json"
                metadata.write_text(metadata.read_text().replace(cache.voxel_hashes["1.2"], f"sha256:{'0' * 64}"))
            close_volumes()  # as where more volumes are open than may be
        after = list(loader(cache, batch=2, steps=16))
        assert len(after) == len(before)
        told = {text.split(":", 1)[0] for batch in after for text in batch.damaged}
        assert told == {"1.2"}
        sound = [(one, two) for one, two in zip(before, after) if not two.damaged]
        assert sound
        assert all(same(one, two) for one, two in sound)


DYING = """
import sys, time
from contextlib import closing
import psutil
from aneurysm.cache.cache import open_cache
from aneurysm.errors import LoaderError
from aneurysm.patches.loader import PatchLoader, raise_loader_errors

if __name__ == "__main__":
    cache = open_cache(sys.argv[1])
    try:
        loader = PatchLoader(cache, patch=(16, 16, 16), batch_size=2, steps=100_000, workers=2)
        with closing(loader), raise_loader_errors():
            for step, batch in enumerate(loader):
                if step == 3:
                    psutil.Process().children()[0].send_signal(int(sys.argv[2]))
                time.sleep(0.001)
    except LoaderError as error:
        print(error)
        sys.exit(9)
"""


@pytest.mark.parametrize(
    "number, words",
    [
        pytest.param(signal.SIGKILL, "Out of memory is the usual cause: take fewer workers", id="killed"),
        pytest.param(signal.SIGALRM, "was ended, since it was sent SIGTERM 60 s ago", id="at the end of its grace"),
        pytest.param(signal.SIGSEGV, "was ended by SIGSEGV, which", id="crashed", marks=pytest.mark.slow),
        pytest.param(signal.SIGBUS, "was ended by SIGBUS: shared memory is full", id="bus", marks=pytest.mark.slow),
    ],
)
def test_a_dead_worker_is_an_error_that_says_how_it_ended_and_no_hang(small_cache, number, words):
    """In a process of its own: torch's signal handler raises wherever the main thread is."""
    command = [sys.executable, "-c", DYING, small_cache.root, str(int(number))]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 9, ran.stderr
    assert "a worker that reads patches" in ran.stdout
    assert words in ran.stdout
    assert ("memory" in ran.stdout) == (number in (signal.SIGKILL, signal.SIGBUS))


@pytest.mark.slow
def test_memory_stays_flat_over_an_epoch(small_cache):
    some = loader(small_cache, steps=40, batch=8)
    process = psutil.Process()
    list(islice(iter(some), 20))
    before = process.memory_info().rss
    for _ in range(2):
        for _batch in some:
            pass
    # 80 batches of 1 MB went through.
    assert process.memory_info().rss - before < 20e6


def test_a_rank_without_a_whole_part_is_refused(small_cache):
    with pytest.raises(SamplingError, match="rank 2 of 2"):
        loader(small_cache, rank=2, ranks=2)


def test_a_batch_travels_between_processes_with_all_it_has(reference):
    batch = reference[0][0]
    assert same(pickle.loads(pickle.dumps(batch)), batch)
