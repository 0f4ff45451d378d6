"""The batches of a step, and where training is while the next ones are fetched."""

from __future__ import annotations

import pytest
import torch

from aneurysm.patches.loader import PatchLoader
from aneurysm.training.timed_loader import TimedBatches


def loader_of(cache, steps=7):
    return PatchLoader(cache, volumes=range(12), patch=(8, 8, 8), batch_size=2, steps=steps)


@pytest.mark.parametrize("accumulate", [1, 3, 4, 10])
def test_every_batch_comes_once_with_those_of_its_step(train_cache, accumulate):
    expected = [batch.index.tolist() for batch in loader_of(train_cache)]
    parts = list(TimedBatches(loader_of(train_cache), torch.device("cpu"), accumulate))
    assert [part.batch.index.tolist() for part in parts] == expected
    for k, part in enumerate(parts):
        first = k - k % accumulate
        assert part.number == k % accumulate
        assert [b.index.tolist() for b in part.step] == expected[first : first + accumulate]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_what_was_fetched_ahead_comes_again_after_a_stop(train_cache, accumulate):
    """A checkpoint is written after the last batch of a step, when some of the next one's lie ready."""
    expected = [batch.index.tolist() for batch in loader_of(train_cache)]
    assert len(expected) > 0
    for stop in range(accumulate, 7, accumulate):
        batches = TimedBatches(loader_of(train_cache), torch.device("cpu"), accumulate)
        seen = []
        for part in batches:
            seen.append(part.batch.index.tolist())
            if len(seen) == stop:
                state = batches.state_dict()
                break
        assert state["step"] == stop
        resumed = TimedBatches(loader_of(train_cache), torch.device("cpu"), accumulate)
        resumed.load_state_dict(state)
        assert seen + [part.batch.index.tolist() for part in resumed] == expected
