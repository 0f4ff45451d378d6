"""Sliding windows: the right answer for the right series, at the right place, however it is cut up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from aneurysm.errors import DamagedCacheError, UsageError
from aneurysm.labels import LABELS
from aneurysm.models.output import ModelOutput
from aneurysm.models.pooling import POOLINGS
from aneurysm.patches.augment import augment
from aneurysm.patches.augment_config import AugmentConfig
from aneurysm.patches.views.view import Box
from aneurysm.volume.blocks import Blocks
from aneurysm.windows.grid import read_windows
from aneurysm.windows.predict import WindowOptions, predict_cached, predict_or_pass
from tests.support.batches import make_batch
from tests.support.mark_finder import SURE, Finds, sites_of
from tests.support.metadata import HU
from tests.support.painted import AIR, STRAIGHT, Painted

PATCH = (16, 24, 24)
# 2 mm along z, 0.5 and 0.8 mm in plane, turned by 30 degrees about z, and moved.
TURNED = np.array(
    [
        [0, -0.5 * 0.5, 0.8 * np.cos(np.pi / 6), -30.0],
        [0, 0.5 * np.cos(np.pi / 6), 0.8 * 0.5, 12.5],
        [2.0, 0, 0, 100.0],
        [0, 0, 0, 1],
    ]
)
SMALL = Painted("1.1", (10, 12, 20), ((4, (9, 0, 19)),))
LARGE = Painted("1.2", (40, 50, 60), ((11, (3, 45, 31)), (0, (39, 0, 59))), TURNED)
EMPTY = Painted("1.3", (30, 30, 30))
MIXED = Painted("1.4", (8, 70, 25), ((6, (4, 33, 12)),))


def predictions(cache, model=None, volumes=None, **options):
    volumes = range(len(cache)) if volumes is None else volumes
    options = WindowOptions(**{"view": Box(PATCH), "candidates": 3, **options})
    return list(predict_cached(model or Finds(), cache, volumes, options))


def sure(prediction):
    return [c for c in prediction.candidates if c.probability > 0.5]


def test_site_and_place_in_volumes_smaller_and_larger_than_a_window(painted):
    cache = painted(SMALL, LARGE, EMPTY, MIXED)
    small, large, empty, mixed = predictions(cache)
    assert [p.series_uid for p in (small, large, empty, mixed)] == ["1.1", "1.2", "1.3", "1.4"]
    assert sites_of(small) == {LABELS[4], LABELS[13]}
    assert sites_of(large) == {LABELS[11], LABELS[0], LABELS[13]}
    assert sites_of(empty) == set()
    assert sites_of(mixed) == {LABELS[6], LABELS[13]}
    assert np.allclose(large.logits, np.where(large.probabilities > 0.5, SURE, -SURE), atol=1e-4)
    assert np.allclose(large.probabilities, 1 / (1 + np.exp(-large.logits)), atol=1e-6)
    assert (large.probabilities.dtype, large.logits.dtype) == (np.float64, np.float32)

    assert sure(empty) == []
    (one,) = sure(small)
    assert (one.site, one.zyx, one.lps_mm) == (4, (9, 0, 19), (19, 0, 9))
    assert one.probability == pytest.approx(1 / (1 + np.exp(-SURE)))
    assert {(c.site, c.zyx) for c in sure(large)} == {(11, (3, 45, 31)), (0, (39, 0, 59))}
    for candidate in sure(large):
        z, y, x = candidate.zyx
        cos = np.cos(np.pi / 6)
        expected = (-30 - 0.25 * y + 0.8 * cos * x, 12.5 + 0.5 * cos * y + 0.4 * x, 100 + 2 * z)
        assert np.allclose(candidate.lps_mm, expected)


@pytest.mark.parametrize("stride", [2, 4, 8])
def test_a_coarse_map_is_right_within_half_a_cell(painted, stride):
    rng = np.random.default_rng(stride)
    marks = tuple((k, tuple(int(v) for v in rng.integers(0, (40, 50, 60)))) for k in range(13))
    (found,) = predictions(painted(Painted("1.1", (40, 50, 60), marks)), Finds(stride), candidates=100)
    for site, place in marks:
        of_site = [c for c in sure(found) if c.site == site]
        assert of_site, f"site {site} at {place} is missing"
        # Windows whose cells don't coincide place one lesion in cells that differ, by less than a cell.
        assert min(np.abs(np.subtract(c.zyx, place)).max() for c in of_site) <= stride / 2
        assert all(np.abs(np.subtract(c.zyx, place)).max() <= stride for c in of_site)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"batch_size": 1}, id="one window at a time"),
        pytest.param({"batch_size": 1000}, id="all at once"),
        pytest.param({"batch_size": 5, "workers": 3}, id="three threads"),
        pytest.param({"overlap": 0.0}, id="no overlap"),
        pytest.param({"overlap": 0.75, "batch_size": 64}, id="much overlap"),
        pytest.param({"view": Box((40, 50, 60))}, id="one window"),
    ],
)
def test_the_answer_is_the_same_however_it_is_cut_up(painted, options):
    cache = painted(SMALL, LARGE, EMPTY, MIXED)
    expected = predictions(cache)
    assert len(expected) == 4
    for usual, other in zip(expected, predictions(cache, **options), strict=True):
        assert (usual.volume, usual.series_uid) == (other.volume, other.series_uid)
        assert np.array_equal(usual.logits, other.logits)
        assert sure(usual) == sure(other)


def test_order_and_numbers_are_those_asked_for(painted):
    cache = painted(SMALL, LARGE, EMPTY, MIXED)
    found = predictions(cache, volumes=[3, 0, 2], workers=2)
    assert [(p.volume, p.series_uid) for p in found] == [(3, "1.4"), (0, "1.1"), (2, "1.3")]
    assert predictions(cache, volumes=[]) == []


def test_windows_of_several_series_share_batches(painted):
    model = Finds()
    predictions(painted(*(Painted(f"1.{i}", PATCH) for i in range(7))), model, batch_size=3)
    assert model.batches == [3, 3, 1]


def test_an_answer_comes_as_soon_as_its_windows_are_run(painted):
    model = Finds()
    cache = painted(EMPTY, LARGE)
    options = WindowOptions(Box(PATCH), batch_size=4)
    answers = predict_cached(model, cache, [cache.uids.index("1.3"), 0, 1], options)
    assert next(answers).series_uid == "1.3"
    assert model.batches == [4, 4, 4]
    answers.close()


def test_windows_are_counted_within_the_series_in_work(painted):
    cache, counts = painted(EMPTY, LARGE), []
    options = WindowOptions(Box(PATCH), batch_size=4)
    events = counts.append
    large, empty = cache.uids.index("1.2"), cache.uids.index("1.3")
    for answer in predict_cached(Finds(), cache, [empty, large], options, lambda *both: events(both)):
        events(answer.series_uid)
    first, second = counts.index("1.3"), counts.index("1.2")
    for part in (counts[:first], counts[first + 1 : second]):
        assert len(part) >= 2
        assert len({of for _, of in part}) == 1
        done = [n for n, _ in part]
        assert done == sorted(set(done))
        assert 0 <= done[0] <= 4
        assert done[-1] < part[0][1]
    assert second == len(counts) - 1


def test_what_has_no_source_is_passed_on_in_its_place_and_does_not_wait(painted):
    cache = painted(SMALL, EMPTY)
    taken = []

    def sources():
        for source in (None, None, cache[0], *[None] * 20, cache[1], None):
            taken.append(source)
            yield source

    # The batch would hold both series.
    answers = predict_or_pass(Finds(), sources(), WindowOptions(Box(PATCH), batch_size=1000))
    expected = [None, None, "1.1", *[None] * 20, "1.3", None]
    for number, uid in enumerate(expected):
        answer = next(answers)
        assert uid == (answer and answer.series_uid)
        assert len(taken) <= number + 4  # what is read ahead
    assert list(answers) == []


def test_no_candidates_unless_asked_for(painted):
    (found,) = predictions(painted(SMALL), candidates=0)
    assert found.candidates == []


class Remembers(nn.Module):
    """Notes the values that it was shown; `EVERY_VALUE` maps each stored integer to one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.windows = set(), 0

    def forward(self, image: torch.Tensor) -> ModelOutput:
        self.windows += len(image)
        self.seen |= set((image * 65535 - 32768).round().long().flatten().tolist())
        return ModelOutput(torch.zeros(len(image), 14))


EVERY_VALUE = (-32768.0, 32767.0)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 36)] * 3),
    patch=st.tuples(*[st.integers(1, 40)] * 3),
    overlap=st.floats(0, 0.8),
    seed=st.integers(0, 1000),
)
def test_every_voxel_of_the_head_is_under_a_window_and_in_its_part(shape, patch, overlap, seed):
    patch = tuple(max(p, n // 4) for p, n in zip(patch, shape))
    head = np.random.default_rng(seed).random([-(-n // 8) for n in shape]) < 0.3
    source = Fake(shape, head)
    windows = read_windows(source, patch, overlap)
    voxels = np.argwhere(np.kron(head, np.ones((8, 8, 8), bool))[tuple(map(slice, shape))])
    covered = np.zeros(len(voxels), bool)
    for start, (first, last) in zip(windows.starts, windows.parts, strict=True):
        in_part = (first <= voxels) & (voxels <= last)
        covered |= (in_part & (start <= voxels) & (voxels < np.add(start, patch))).all(axis=1)
    assert covered.all()


class Fake:
    """A source that has no voxels."""

    def __init__(self, shape, head) -> None:
        self.uid, self.shape, self.affine_lps, self.intensity = "1", shape, STRAIGHT, HU
        self.blocks = Blocks((8, 8, 8), head, head, from_mask=False)

    def read(self, start, shape):
        return np.zeros(shape, np.int16)


def test_the_model_is_shown_the_head_and_not_the_air_far_from_it(painted):
    shape = (40, 40, 40)
    voxels = (np.arange(np.prod(shape)) - 32768).astype(np.int16).reshape(shape)
    head = np.zeros((5, 5, 5), bool)
    head[0, 0, 0] = head[4, 3, 4] = True
    model = Remembers()
    cache = painted(Painted("1.1", shape, head=head, voxels=voxels, window=EVERY_VALUE))
    predictions(cache, model, view=Box((16, 16, 16)))
    assert model.windows < 27
    for box in (np.s_[:8, :8, :8], np.s_[32:, 24:32, 32:]):
        assert set(voxels[box].ravel().tolist()) <= model.seen
    assert int(voxels[20, 20, 20]) not in model.seen


def test_the_grid_is_laid_over_the_head_and_shows_no_padding_where_there_are_voxels():
    head = np.zeros((10, 10, 3), bool)
    head[2:8, 9, 0] = True
    windows = read_windows(Fake((80, 77, 20), head), (32, 24, 24), 0.25)
    # 48 voxels along z take two windows; along y the last ends with the volume, along x the volume is in the middle.
    assert windows.starts == [(16, 53, -2), (32, 53, -2)]


def test_without_a_head_all_of_the_volume_is_looked_at(painted):
    nothing = np.zeros((5, 7, 8), bool)
    (found,) = predictions(painted(Painted("1.1", (40, 50, 60), ((5, (20, 20, 20)),), head=nothing)))
    assert sites_of(found) == {LABELS[5], LABELS[13]}


class Echo(nn.Module):
    """Keeps what it was shown."""

    def forward(self, image: torch.Tensor) -> ModelOutput:
        self.shown = image
        return ModelOutput(torch.zeros(len(image), 14))


@pytest.mark.parametrize("windows_hu", [(), ((-100.0, 300.0), (0.0, 80.0))])
def test_the_model_is_shown_what_training_shows_to_the_bit(painted, windows_hu):
    rng = np.random.default_rng(1)
    voxels = rng.integers(-1000, 2000, (14, 24, 24)).astype(np.int16)
    model = Echo()
    predictions(painted(Painted("1.1", voxels.shape, voxels=voxels)), model, ct_windows_hu=windows_hu)
    padded = np.full(PATCH, AIR, np.int16)
    padded[1:15] = voxels
    batch = make_batch(torch.from_numpy(padded)[None, None], window=(-100.0, 900.0), fill=AIR)
    expected = augment(batch, AugmentConfig.off(), ct_windows_hu=windows_hu).image
    assert torch.equal(model.shown, expected)


class OfWindow(nn.Module):
    """Answers each window by its mean."""

    def forward(self, image: torch.Tensor) -> ModelOutput:
        return ModelOutput((image.mean((1, 2, 3, 4)) * 10)[:, None].expand(-1, 14))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_windows_are_pooled_as_asked_for(painted, pooling):
    voxels = np.full((48, 24, 24), AIR, np.int16)
    voxels[:16], voxels[16:32] = 100, 300
    (found,) = predictions(
        painted(Painted("1.1", voxels.shape, voxels=voxels)), OfWindow(), overlap=0.0, pooling=pooling
    )
    expected = POOLINGS[pooling](torch.tensor([[2.0] * 14, [4.0] * 14, [0.0] * 14]).sigmoid())
    assert np.allclose(found.probabilities, expected.numpy(), atol=1e-5)
    assert np.allclose(found.logits, expected.logit().numpy(), atol=1e-4)


def test_the_surest_keep_their_order(painted):
    class Sure(nn.Module):
        def forward(self, image):
            return ModelOutput((image.amax((1, 2, 3, 4)) * 30)[:, None].expand(-1, 14))

    volumes = [Painted(f"1.{i}", PATCH, voxels=np.full(PATCH, hu, np.int16)) for i, hu in enumerate((700, 750, 800))]
    low, middle, high = (p.logits[13] for p in predictions(painted(*volumes), Sure()))
    assert low < middle < high


def test_a_classifier_says_roughly_where(painted):
    # Windows lie at 0, 12, 24, 36 along y and x, at 0, 8, ... along z.
    cache = painted(Painted("1.1", (40, 60, 60), ((3, (20, 30, 30)), (9, (2, 57, 3)))))
    (found,) = predictions(cache, Finds(None))
    assert {c.site for c in sure(found)} == {3, 9}
    for candidate in sure(found):
        place = {3: (20, 30, 30), 9: (2, 57, 3)}[candidate.site]
        assert (np.abs(np.subtract(candidate.zyx, place)) <= np.array(PATCH) / 2).all()
    middle = next(c for c in sure(found) if c.site == 3)
    assert (np.abs(np.subtract(middle.zyx, (20, 30, 30))) <= 6).all()


def test_half_precision(painted):
    class Convolution(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.seen = nn.Conv3d(1, 14, 3, padding=1), None

        def forward(self, image):
            dense = self.inner(image)
            self.seen = dense.dtype
            return ModelOutput(dense.amax((2, 3, 4)), dense)

    torch.manual_seed(0)
    model = Convolution().eval()
    cache = painted(MIXED)
    (exact,) = predictions(cache, model)
    assert model.seen == torch.float32
    (half,) = predictions(cache, model, precision="bf16")
    assert model.seen == torch.bfloat16
    assert half.logits.dtype == np.float32
    assert np.allclose(exact.logits, half.logits, atol=0.02)
    assert all(np.isfinite(c.probability) for c in half.candidates)


def test_a_damaged_volume_raises(painted):
    cache = painted(SMALL, LARGE)
    shard = next(cache[1].path.glob("0/c/0/0/0"))
    content = bytearray(shard.read_bytes())
    content[:60] = bytes(60)
    shard.write_bytes(content)
    answers = predict_cached(Finds(), cache, [0, 1], WindowOptions(Box(PATCH), workers=2))
    with pytest.raises(DamagedCacheError, match=r"1\.2"):
        list(answers)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"pooling": "median"}, "no pooling 'median'; choose from max"),
        ({"precision": "8"}, "no precision '8'; choose from fp32"),
        ({"overlap": 1.0}, "overlap by 1"),
        ({"batch_size": 0}, "0 at once"),
    ],
)
def test_an_option_without_such_a_value_is_refused(options, words):
    with pytest.raises(UsageError, match=words):
        WindowOptions(Box(PATCH), **options)


def test_a_model_that_returns_something_else_is_told_apart(painted):
    with pytest.raises(UsageError, match="returned Tensor"):
        predictions(painted(SMALL), nn.Identity())
