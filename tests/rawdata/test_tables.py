"""train.csv and train_localizers.csv as people leave them: read rightly, or one line that says where to look."""

from __future__ import annotations

import math
import tracemalloc

import pytest

from aneurysm.errors import DataError
from aneurysm.labels import LABELS
from aneurysm.rawdata.tables import LOCALIZERS_CSV, TRAIN_CSV, Localizer, SeriesNotes, Tables, read_tables
from tests.support.acquisition import acquire
from tests.support.cached import run
from tests.support.pattern import anatomy
from tests.support.series import new_uid, write_series
from tests.support.trees import LOCALIZER_COLUMNS, TRAIN_COLUMNS, RsnaTree

UID = "1.2.3"
HEADER = ",".join(TRAIN_COLUMNS)
ZEROS = ",".join(["0"] * 13)
ROW = f"{UID},50,F,CTA,{ZEROS},1"
LOCALIZERS = ",".join(LOCALIZER_COLUMNS)


def _tables(folder, train: str | bytes = f"{HEADER}\n{ROW}\n", localizers: str | bytes | None = None) -> Tables:
    for name, text in ((TRAIN_CSV, train), (LOCALIZERS_CSV, localizers)):
        if text is not None:
            (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_tables(folder)


GOOD = {label: int(label == "Aneurysm Present") for label in LABELS}


@pytest.mark.parametrize(
    "train",
    [
        pytest.param(f"{HEADER}\n{ROW},\n", id="a comma too many"),
        pytest.param(f"{HEADER},\n{ROW},,,\n", id="commas in the header, too"),
        pytest.param(f"{HEADER}\n{ROW}\n".replace(",", ";"), id="semicolons"),
        pytest.param(f"{HEADER}\n{ROW}\n".encode("utf-16"), id="UTF-16"),
        pytest.param(f"{HEADER}\n{ROW}\n".replace(f"\n{UID},", f"\n {UID}\0,"), id="blanks and NULs at the UID"),
        pytest.param(f"{HEADER}\n{ROW}\n".replace(",CTA,", ", cta ,"), id="cta"),
        pytest.param(f"{HEADER}\n{ROW}\n".replace(ZEROS, ZEROS.replace("0", "0.0")), id="0.0"),
        pytest.param(f"{HEADER}\n{ROW}\n".replace(f"{ZEROS},1", f"{ZEROS.replace('0', 'False')},True"), id="bools"),
        pytest.param(f"{HEADER}\n{ROW}\n".replace(",", ";").replace(";1\n", ";1,0\n"), id="1,0 beside semicolons"),
        pytest.param(f"{HEADER}\n{ROW}\n{ROW}\n", id="an identical row twice"),
        pytest.param(f"{HEADER},comment\n{ROW},x\n", id="a column more"),
    ],
)
def test_labels_and_modality_are_read_rightly(tmp_path, train):
    tables = _tables(tmp_path, train)
    assert list(tables) == [UID]
    assert tables.of(UID).labels == GOOD
    assert tables.of(UID).modality == "CTA"


@pytest.mark.parametrize(
    "train, message",
    [
        pytest.param(f"{HEADER}\n{ROW},1,2\n", "line 2 has 20 cells, and the header has 18", id="values too many"),
        pytest.param(f"{HEADER}\n{ROW[:-4]}\n", "line 2 has 16 of 18 cells: is the file cut off", id="cut off"),
        pytest.param(f"{HEADER}\n{ROW[:-1]}\n", r"line 2, column Aneurysm Present: '' is neither", id="cut off by one"),
        pytest.param(f"{HEADER}\n{ROW}\n".replace(",1\n", ",nan\n"), "'nan' is neither 0 nor 1", id="nan"),
        pytest.param(f"{HEADER}\n{ROW}\n".replace(",1\n", ",2\n"), "'2' is neither 0 nor 1", id="2"),
        pytest.param(f"{HEADER}\n{ROW}\n".replace(",CTA", ",PET"), "line 2: unknown Modality 'PET'", id="modality"),
        pytest.param(f"{HEADER}\n{ROW}\n{ROW[:-1]}0\n", "lines 2 and 3 name series 1.2.3 with", id="differs"),
        pytest.param(f"{HEADER}\n{ROW.replace(UID, ' ')}\n", "line 2: SeriesInstanceUID is empty", id="no UID"),
        pytest.param("", "is empty", id="empty"),
    ],
)
def test_one_line_says_what_is_wrong_and_where(tmp_path, train, message):
    with pytest.raises(DataError, match=message) as raised:
        _tables(tmp_path, train)
    assert TRAIN_CSV in str(raised.value)


def test_a_table_of_a_header_alone_has_no_series(tmp_path):
    assert list(_tables(tmp_path, f"{HEADER}\n")) == []


@pytest.mark.parametrize(
    "row",
    [
        "1.2.3,4.5,\"{'x': 20.5, 'y': 30.25}\",Basilar Tip",
        "1.2.3,4.5,\"{'x': 20.5, 'y': 30.25}\",Basilar Tip,,",
        "1.2.3, 4.5\0,\"{'x': 20.5, 'y': 30.25}\", basilar tip ",
        "1.2.3,4.5,\"{'x': np.float64(20.5), 'y': np.float64(30.25)}\",Basilar Tip",
        "1.2.3,4.5,\"{'x': numpy.float32(20.5), 'y': 30.25, 'f': None}\",Basilar Tip",
        '1.2.3,4.5,"{""x"": ""20.5"", ""y"": 30.25}",Basilar Tip',
    ],
)
def test_points_are_read_rightly(tmp_path, row):
    (point,) = _tables(tmp_path, localizers=f"{LOCALIZERS}\n{row}\n").of(UID).localizers
    assert (point.row, point.sop_uid, point.location) == (2, "4.5", "Basilar Tip")
    assert (point.x, point.y, point.frame, point.problem) == (20.5, 30.25, None, "")


@pytest.mark.parametrize(
    "coordinates, frame",
    [("{'x': 1, 'y': 2, 'f': 3}", 3), ("{'x': 1, 'y': 2, 'f': 3.0}", 3), ("{'x': 1, 'y': 2, 'f': np.int64(3)}", 3)],
)
def test_the_number_of_a_frame_is_read(tmp_path, coordinates, frame):
    tables = _tables(tmp_path, localizers=f'{LOCALIZERS}\n{UID},4.5,"{coordinates}",Basilar Tip\n')
    assert tables.of(UID).localizers[0].frame == frame


@pytest.mark.parametrize(
    "coordinates, problem",
    [
        ("[20.0, 20.0]", "are not {'x': ..., 'y': ...}"),  # (x, y) or (row, column)?
        ("{'x': nan, 'y': 2}", "are not"),
        ("{'x': 1e999, 'y': 2}", "are not finite"),
        ("{'x': 1, 'y': 2, 'f': 2.5}", "f is no number of a frame"),
        ("{'x': 1}", "are not"),
        ("__import__('os').abort()", "are not"),
        ("np.float64(1)", "are not"),
        ("(" * 5000, "are not"),
        ("", "are not"),
    ],
)
def test_a_point_that_can_not_be_read_is_a_row_with_a_problem(tmp_path, coordinates, problem):
    (point,) = _tables(tmp_path, localizers=f'{LOCALIZERS}\n{UID},4.5,"{coordinates}",Basilar Tip\n').of(UID).localizers
    assert problem in point.problem
    assert math.isnan(point.x) or point.frame is None


def test_a_point_whose_comma_is_not_quoted_is_one_clear_line(tmp_path):
    with pytest.raises(DataError, match=r"line 2 has 5 cells, and the header has 4: .* in double quotes"):
        _tables(tmp_path, localizers=f"{LOCALIZERS}\n{UID},4.5,{{'x': 1, 'y': 2}},Basilar Tip\n")


def test_surplus_commas_cost_no_lesion_of_a_positive_series(tmp_path):
    """From the tables to the voxel: the same place as without the commas."""
    uid = new_uid("commas")
    acquisition = acquire(slices=8)
    places = []
    for name, comma in (("plain", ""), ("commas", ",")):
        tree = RsnaTree(tmp_path / name)
        series = write_series(tree.folder(uid), acquisition, anatomy(acquisition.centre), uid=uid)
        tree.declare(uid, "CTA", positive=["Basilar Tip"])
        tree.localize(uid, series.sops[3], 9.5, 12.25, "Basilar Tip")
        root = tree.write_tables()
        for table in (root / TRAIN_CSV, root / LOCALIZERS_CSV):
            table.write_text(table.read_text().replace("\n", f"{comma}\n"))
        image = run(root).image(uid)
        assert image.meta["labels"]["Aneurysm Present"] == 1
        places.append([lesion["zyx"] for lesion in image.lesions])
    assert len(places[0]) == 1
    assert places[0] == places[1]


def test_series_with_the_same_labels_share_their_notes_and_localizers_come_back_as_they_were(tmp_path):
    train = "".join(f"{uid},50,F,CTA,{ZEROS},1\n" for uid in ("1.2.3", "1.2.4", "1.2.5"))
    rows = [
        "1.2.3,4.5,\"{'x': 20.1, 'y': 30.25}\",Basilar Tip",
        "1.2.9,4.6,\"{'x': 1, 'y': 2, 'f': 3}\",Basilar Tip",
        '1.2.3,4.7,nowhere,"Über ""all"""',
    ]
    tables = _tables(tmp_path, f"{HEADER}\n{train}", LOCALIZERS + "\n" + "\n".join(rows) + "\n")
    assert tables.of("1.2.4") is tables.of("1.2.5")
    first, second = tables.of("1.2.3").localizers
    assert first == Localizer(2, "1.2.3", "4.5", "Basilar Tip", 20.1, 30.25)
    assert (second.row, second.sop_uid, second.location) == (4, "4.7", 'Über "all"')
    assert math.isnan(second.x)
    assert "are not {'x': ..., 'y': ...}" in second.problem
    assert tables.of("1.2.9") == SeriesNotes("", None, (Localizer(3, "1.2.9", "4.6", "Basilar Tip", 1.0, 2.0, 3),))
    assert sorted(tables) == ["1.2.3", "1.2.4", "1.2.5", "1.2.9"]
    assert "1.2.9" in tables
    assert "1.2.8" not in tables


def test_a_table_of_many_series_takes_little_memory(tmp_path):
    """UIDs as long as those of the RSNA set, every second series with a lesion: as objects they were 2 KB each."""
    uids = [f"1.2.826.0.1.3680043.8.498.{10**36 + number}" for number in range(2000)]
    train = "".join(f"{uid},50,F,CTA,{ZEROS},1\n" for uid in uids)
    rows = "".join(f"{uid},{uid}.1,\"{{'x': {n / 7}, 'y': {n / 9}}}\",Basilar Tip\n" for n, uid in enumerate(uids[::2]))
    (tmp_path / TRAIN_CSV).write_text(f"{HEADER}\n{train}")
    (tmp_path / LOCALIZERS_CSV).write_text(f"{LOCALIZERS}\n{rows}")
    del uids, train, rows
    tracemalloc.start()
    try:
        tables = read_tables(tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(list(tables)) == 2000
    assert peak / 2000 < 600, "bytes a series"
