"""From a folder of DICOM files, or a checkpoint from whoever, to an answer: the right place, or a clear error."""

from __future__ import annotations

import os
import pickle
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import aneurysm
from aneurysm import CacheWriter
from aneurysm.cache.cache import open_cache
from aneurysm.errors import AneurysmError, DeviceMemoryError, SeriesRejectedError, UsageError
from aneurysm.inference.prediction import Prediction
from aneurysm.inference.predictor import Member, Predictor, load_predictor
from aneurysm.inference.read_series import Failure, read_path
from aneurysm.inference.routing import Route
from aneurysm.inference.series_paths import find_paths
from aneurysm.labels import LABELS
from aneurysm.models.output import ModelOutput
from aneurysm.patches.views.view import Box
from aneurysm.precaching.run import precache
from aneurysm.rawdata.folder import SeriesSource
from aneurysm.spec import load_spec
from aneurysm.windows.predict import WindowOptions, predict_cached
from tests.support.acquisition import acquire, rotation
from tests.support.brightest import Brightest
from tests.support.cache_paths import volume_path
from tests.support.checkpoints import write_checkpoint
from tests.support.painted import Painted
from tests.support.pattern import lone_blob
from tests.support.series import write_multiframe, write_series

SPEC = load_spec("rsna-1mm")
PATCH = (16, 24, 24)


@cache
def brightest(**options):
    """One for all tests: its process that reads DICOM takes a second to start."""
    return predictor_of(Brightest(), **{"candidates": 1, **options})


def predictor_of(model, **options):
    return Predictor([Member(model, Route(SPEC), WindowOptions(Box(PATCH), **options))])


@pytest.mark.parametrize("stripped", [False, True], ids=["all tags", "the 25 tags of the test set"])
@pytest.mark.parametrize(
    "layout",
    [
        pytest.param({"plane": "axial", "spacing_mm": (0.9, 0.7)}, id="axial"),
        pytest.param({"plane": "coronal", "reverse": True}, id="coronal"),
        pytest.param({"plane": "sagittal", "turn": rotation([1, 2, 3], 17), "gap_mm": 1.3}, id="oblique sagittal"),
        pytest.param({"plane": "axial", "tilt_deg": 15.0, "gap_mm": 1.5}, id="tilted"),
    ],
)
def test_a_bright_spot_is_found_where_it_was_put(tmp_path, layout, stripped):
    acquisition = acquire(**layout)
    index, column, row = 9, 11.3, 20.6
    point = acquisition.lps(index, column, row)
    written = write_series(
        tmp_path / "1.2.3", acquisition, lone_blob(point, height=600.0), uid="1.2.3", stripped=stripped
    )
    prediction = brightest()(tmp_path / "1.2.3")
    assert prediction.series_uid == "1.2.3"
    assert list(prediction.probabilities) == list(LABELS)
    (found,) = prediction.candidates
    assert found.site == "Left Middle Cerebral Artery"
    assert found.probability == pytest.approx(prediction.probabilities[found.site], abs=1e-6)
    assert np.linalg.norm(np.subtract(found.lps_mm, point)) < 0.2
    assert found.source.sop_uid == written.sops[index]
    assert found.source.frame is None
    assert (found.source.column, found.source.row) == pytest.approx((column, row), abs=0.3)


def test_a_frame_of_a_multiframe_file_is_named(tmp_path):
    acquisition = acquire("axial")
    written = write_multiframe(tmp_path / "1.2.3", acquisition, lone_blob(acquisition.lps(7, 12, 15), sigma_mm=2.0))
    (found,) = brightest()(tmp_path / "1.2.3").candidates
    assert (found.source.sop_uid, found.source.frame) == (written.sops[0], 7)
    assert (found.source.column, found.source.row) == pytest.approx((12, 15), abs=0.3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three good series, one of a single slice, one without a file; and their cache."""
    root = tmp_path_factory.mktemp("data")
    for k in range(3):
        acquisition = acquire("axial", slices=20 + 10 * k)
        write_series(
            root / "data" / "series" / f"1.2.{k}", acquisition, lone_blob(acquisition.lps(9, 9 + k, 9)), uid=f"1.2.{k}"
        )
    write_series(root / "data" / "series" / "1.2.7", acquire(slices=1), lone_blob(np.zeros(3)), uid="1.2.7")
    (root / "data" / "series" / "1.2.8").mkdir()
    precache(root / "data", root / "cache", workers=0)
    return root


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return [write_checkpoint(root / f"{seed}.ckpt", seed) for seed in range(2)]


def test_a_decoder_that_crashes_is_an_error_and_not_the_end_of_the_caller(data, checkpoints, tmp_path, monkeypatch):
    crash = "__import__('os').abort() if event == 'open' and '1.2.1/' in str(args[0]) else 0"
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.addaudithook(lambda event, args: {crash})")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    predictor = load_predictor(checkpoints[:1])
    with pytest.raises(SeriesRejectedError, match="worker_killed"):
        predictor(data / "data" / "series" / "1.2.1")
    assert predictor(data / "data" / "series" / "1.2.0").series_uid == "1.2.0"


def test_dicom_cache_and_validation_give_the_same_answer(data, checkpoints):
    predictor = load_predictor(checkpoints[:1], candidates=3)
    cache = open_cache(data / "cache")
    model = predictor.model((0,))
    options = WindowOptions(Box((32, 32, 32)), pooling="max", overlap=0.25, candidates=3)
    validated = list(predict_cached(model, cache, range(3), options))
    assert len(validated) == 3
    for expected in validated:
        of_dicom = predictor(data / "data" / "series" / expected.series_uid)
        of_cache = predictor(volume_path(data / "cache", expected.series_uid))
        for found in (of_dicom, of_cache):
            assert found.series_uid == expected.series_uid
            assert np.allclose(found.logits, expected.logits, atol=1e-5)
            assert np.allclose([c.zyx for c in found.candidates], [c.zyx for c in expected.candidates], atol=1e-3)
        assert all(c.source is not None for c in of_dicom.candidates)
        assert all(c.source is None for c in of_cache.candidates)


def test_an_ensemble_is_the_mean_of_its_members_logits_in_each_window(data, checkpoints):
    path = data / "data" / "series" / "1.2.0"  # smaller than a window, so that there is but one
    alone = [load_predictor([c])(path).logits for c in checkpoints]
    together = load_predictor(checkpoints)(path).logits
    assert not np.allclose(alone[0], alone[1])
    assert np.allclose(together, np.mean(alone, axis=0), atol=1e-4)
    mirrored = load_predictor(checkpoints[:1], flip=True)(path).logits
    assert not np.allclose(mirrored, alone[0])


@pytest.mark.parametrize("workers", [1, 3])
def test_one_bad_series_is_a_failure_and_the_others_are_answered_in_order(data, workers):
    answers = list(brightest(workers=workers).predict(find_paths(data / "data")))
    assert [a.series_uid for a in answers] == ["1.2.0", "1.2.1", "1.2.2", "1.2.7", "1.2.8"]
    assert [type(a) for a in answers] == [Prediction] * 3 + [Failure] * 2
    assert (answers[3].status, answers[3].reason) == ("rejected", "too_few_slices")
    assert (answers[4].status, answers[4].reason) == ("rejected", "no_files")
    backwards = list(brightest(workers=workers).predict(find_paths(data / "data")[::-1]))
    assert [a.series_uid for a in backwards] == [a.series_uid for a in answers][::-1]


def test_a_damaged_cached_volume_is_a_failure(data, tmp_path):
    shard = volume_path(data / "cache", "1.2.1") / "0" / "c" / "0" / "0" / "0"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    try:
        answers = list(brightest().predict(find_paths(data / "cache")))
    finally:
        shard.write_bytes(content)
    assert [type(a) for a in answers] == [Prediction, Failure, Prediction]
    assert (answers[1].status, answers[1].reason) == ("failed", "read_error")


class Broken(SeriesSource):
    def list_files(self):
        raise RuntimeError("a fault")


def test_a_fault_in_reading_one_series_is_a_failure():
    (answer,) = brightest().predict([Broken("1.2.3")])
    assert (answer.status, answer.reason) == ("failed", "internal_error")


def test_failures_are_told_before_all_is_read(tmp_path):
    taken = []

    def paths():
        for k in range(50):
            taken.append(k)
            yield SeriesSource(f"1.{k}", tmp_path)

    answers = brightest().predict(paths())
    assert next(answers).reason == "no_files"
    assert len(taken) < 10
    answers.close()


class Raises(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, image):
        raise self.error


class NotANumber(nn.Module):
    def forward(self, image):
        return ModelOutput(torch.full((len(image), 14), torch.nan))


def test_an_answer_that_is_not_a_number_is_none(data):
    predictor = predictor_of(NotANumber(), candidates=3)
    path = data / "data" / "series" / "1.2.0"
    (answer,) = predictor.predict(find_paths(path))
    assert (answer.status, answer.reason) == ("failed", "not_a_number")
    with pytest.raises(AneurysmError, match=r"series 1\.2\.0: the model's answer is not a number; --precision fp32"):
        predictor(path)


@pytest.mark.parametrize("scale", ["NaN", "Infinity"])
def test_a_volume_whose_intensities_are_not_finite_has_no_answer(painted, scale):
    cache = painted(Painted("1.2.3", PATCH), Painted("1.2.4", PATCH))
    metadata = cache[0].path / "zarr.json"
    metadata.write_text(metadata.read_text().replace('"scale": 1.0', f'"scale": {scale}'))
    damaged, sound = brightest().predict([cache[0], cache[1]])
    assert (damaged.status, damaged.reason) == ("failed", "read_error")
    assert damaged.detail.startswith("volume 1.2.3: zarr.json is damaged: intensity.scale: Input should be a finite")
    assert isinstance(sound, Prediction)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't"), MemoryError()], ids=type
)
def test_a_lack_of_memory_says_what_to_lower(data, error):
    predictor = predictor_of(Raises(error), batch_size=3)
    path = data / "data" / "series" / "1.2.0"
    for predict in (predictor, lambda path: list(predictor.predict(find_paths(path)))):
        with pytest.raises(DeviceMemoryError, match=r"out of memory on cpu, with 3 windows at once: .* --batch-size"):
            predict(path)
    with pytest.raises(RuntimeError, match="of another kind"):
        predictor_of(Raises(RuntimeError("of another kind")))(path)


def test_one_series_is_asked_for(data):
    with pytest.raises(UsageError, match="holds 5 series"):
        brightest()(data / "data")
    with pytest.raises(SeriesRejectedError, match="too_few_slices"):
        brightest()(data / "data" / "series" / "1.2.7")


def test_checkpoints_that_don_t_go_together_are_refused(checkpoints, tmp_path):
    other_patch = write_checkpoint(tmp_path / "a.ckpt", 0, patch=(32, 32, 48))
    with pytest.raises(UsageError, match="their patch is"):
        load_predictor([checkpoints[0], other_patch])
    other_spec = write_checkpoint(tmp_path / "b.ckpt", 0, spec="rsna-1mm-u8")
    with pytest.raises(UsageError, match="cache spec"):
        load_predictor([checkpoints[0], other_spec])


@pytest.mark.parametrize(
    "options, words",
    [
        ({"precision": "fp8"}, "no precision 'fp8'"),
        ({"precision": "fp16", "device": "cpu"}, "--precision fp16 needs a GPU, and this runs on a CPU"),
        ({"overlap": 2.0}, "overlap by 2"),
        ({"batch_size": 0}, "0 at once"),
        ({"device": "gpu"}, "no device 'gpu': give auto, cpu, cuda"),
        ({"device": "cuda:99"}, "there is no cuda:99"),
    ],
)
def test_options_are_checked(checkpoints, options, words):
    with pytest.raises(UsageError, match=words):
        load_predictor(checkpoints, **options)


@pytest.fixture
def of_arrays(tmp_path):
    """A checkpoint that was trained on plain arrays, a cache of one of them, and one of a CT of the same spec."""
    for name, modality in (("plain", ""), ("ct", "CTA")):
        with CacheWriter(tmp_path / name, spec="arrays-u8") as writer:
            writer.add("a0", np.full((20, 20, 20), 90, np.uint8), modality=modality)
    return write_checkpoint(tmp_path / "x.ckpt", 0, spec="arrays-u8", modalities=["unknown"])


def test_dicom_is_refused_by_a_model_of_plain_arrays(of_arrays, tmp_path):
    write_series(tmp_path / "1.2.3", acquire("axial"), lone_blob((0, 0, 0)), uid="1.2.3")
    predictor = load_predictor([of_arrays])
    with pytest.raises(UsageError, match=r"trained on plain arrays, without a modality \(spec 'arrays-u8'\)"):
        predictor(tmp_path / "1.2.3")
    with pytest.raises(UsageError, match="it has no answer for DICOM series"):
        list(predictor.predict(find_paths(tmp_path / "1.2.3")))


def test_a_cached_series_with_a_modality_is_refused_by_a_model_of_plain_arrays(of_arrays, tmp_path):
    predictor = load_predictor([of_arrays])
    assert predictor(volume_path(tmp_path / "plain", "a0")).series_uid == "a0"
    with pytest.raises(SeriesRejectedError, match="no_model: its modality is CTA; the models were trained on unknown"):
        predictor(volume_path(tmp_path / "ct", "a0"))


def test_a_plain_array_is_refused_by_a_model_that_never_saw_one(of_arrays, tmp_path):
    predictor = load_predictor([write_checkpoint(tmp_path / "ct.ckpt", 0, spec="arrays-u8", modalities=["CTA"])])
    assert predictor(volume_path(tmp_path / "ct", "a0")).series_uid == "a0"
    (answer,) = predictor.predict(find_paths(tmp_path / "plain"))
    assert (answer.status, answer.reason) == ("failed", "no_model")
    assert answer.detail == "its modality is unknown; the models were trained on CTA"


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_code_in_a_checkpoint_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format_version": 1, "model": Evil()}, tmp_path / "a.ckpt")
    (tmp_path / "b.ckpt").write_bytes(pickle.dumps(Evil(), protocol=2))
    for name in ("a.ckpt", "b.ckpt"):
        with pytest.raises(UsageError, match=name):
            load_predictor([tmp_path / name])
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_told_apart(checkpoints, tmp_path, share):
    content = checkpoints[0].read_bytes()
    path = tmp_path / "cut.ckpt"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UsageError, match=r"cut\.ckpt"):
        load_predictor([path])


def test_dicom_is_not_read_for_a_checkpoint_of_another_recipe(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr("aneurysm.spec.RECIPE_VERSION", 99)
    spec = load_predictor(checkpoints[:1]).routing
    with pytest.raises(UsageError, match=r"of recipe 3 \(digest .* of recipe 99.*Predict with the release that"):
        read_path(SeriesSource("1.2", tmp_path), spec)


def test_missing_checkpoints_are_told_apart(tmp_path):
    with pytest.raises(UsageError, match="there is no checkpoint"):
        load_predictor([tmp_path / "nowhere.ckpt"])
    with pytest.raises(UsageError, match="no checkpoint is given"):
        load_predictor([])


def test_it_can_be_had_from_the_package():
    assert aneurysm.load_predictor is load_predictor
    with pytest.raises(AttributeError, match="no attribute 'predict'"):
        _ = aneurysm.predict
