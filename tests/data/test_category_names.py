"""Names of categories as people type them: accepted where they are certain, else suggested."""

from __future__ import annotations

import pytest

from helpers.raw_cars import write_cars
from helpers.runs import printed_by
from neural_mesh.categories import (
    CATEGORIES,
    did_you_mean,
    is_same_category,
    pascal3d_name,
)
from neural_mesh.machine import arguments
from neural_mesh.stages.list_categories import list_categories

SAME = {
    "Car": "car",
    "airplane": "aeroplane",
    "Aeroplane": "aeroplane",
    "tv": "tvmonitor",
    "TV/monitor": "tvmonitor",
    "tv-monitor": "tvmonitor",
    "dining_table": "diningtable",
    "Dining table": "diningtable",
    "motorcycle": "motorbike",
    "bike": "bicycle",
    "couch": "sofa",
    "automobile": "car",
}


@pytest.mark.parametrize("typed", SAME)
def test_usual_names_of_a_category_are_known(typed):
    assert pascal3d_name(typed) == SAME[typed]
    assert is_same_category(typed, SAME[typed])
    assert not is_same_category(typed, "bus")


def test_the_twelve_are_called_what_they_are_and_others_are_not_guessed():
    assert all(pascal3d_name(name) == name for name in CATEGORIES)
    for name in ("sign", "truck", "ship", "", "cars", "vehicle"):
        assert pascal3d_name(name) == ""
    assert is_same_category("Sign", "sign")
    assert not is_same_category("sign", "car")


@pytest.mark.parametrize(
    "typed, hint",
    [("cra", "car"), ("cars", "car"), ("aeroplne", "aeroplane"), ("tvmonitors", "tvmonitor")],
)
def test_a_name_with_a_slip_is_suggested(typed, hint):
    assert did_you_mean(typed, CATEGORIES) == f", did you mean {hint}"
    with pytest.raises(ValueError, match=rf"CATEGORIES names {typed}, .* did you mean {hint}\?"):
        list_categories([typed])


@pytest.mark.parametrize(
    "typed, listed, notes",
    [
        ("car chair", "car chair", []),
        ("Car", "car", ["Car in CATEGORIES is taken for car"]),
        ("car car", "car", ["CATEGORIES has car more than once, it counts once"]),
        ("airplane tv", "aeroplane tvmonitor", ["airplane in", "tv in"]),
        ("unicorn", "unicorn", []),
    ],
)
def test_categories_are_listed_once_and_by_their_names(capsys, typed, listed, notes):
    list_categories(typed.split())
    told = capsys.readouterr()
    assert told.out == listed + "\n"
    assert told.err.count("note: ") == len(notes)
    assert all(note in told.err for note in notes)


def test_what_the_data_call_a_category_wins(tmp_path, capsys):
    """A set of one's own may have a `table`, or an `airplane`."""
    for name in ("table_imagenet", "airplane_imagenet", "Sign_pascal"):
        (tmp_path / "raw/Images" / name).mkdir(parents=True)
    (tmp_path / "prepared/lists/bike").mkdir(parents=True)
    data = [tmp_path / "raw", tmp_path / "prepared", tmp_path / "none"]
    list_categories(["table", "aeroplane", "sign", "bike", "bus"], data)
    assert capsys.readouterr().out == "table airplane Sign bike bus\n"


@pytest.mark.parametrize("names", [[], ["../x"], ["a\\b"]])
def test_what_cannot_be_a_category_is_refused(names):
    with pytest.raises(ValueError, match="CATEGORIES"):
        list_categories(names)


def test_a_category_on_the_command_line_counts_once(capsys):
    assert arguments.categories("car, bus;car") == ("car", "bus")
    assert capsys.readouterr().err == "note: of car bus car each counts once\n"


def test_the_scripts_take_names_as_people_type_them(tmp_path, script):
    write_cars(tmp_path / "PASCAL3D+_release1.1")
    (tmp_path / "PASCAL3D+_release1.1/Image_subsets").mkdir()
    settings = {"DATAROOT": tmp_path, "MESH_DIMENSIONS": "single", "WORKERS": 1}
    done = script("PrepareData.sh", CATEGORIES="Car,car", **settings)
    assert "prepared: car; cuboids single" in printed_by(done)
    assert "val: 3 images of 1 category" in done.stdout
    assert done.stderr.count("Car in CATEGORIES is taken for car") == 1
    assert done.stderr.count("more than once") == 1
    for name in ("PrepareData.sh", "TrainNeMo.sh", "InferenceNeMo.sh"):
        done = script(name, CATEGORIES="cra", EXPROOT=tmp_path / "exp", **settings)
        assert done.returncode == 1
        assert done.stderr == "error: CATEGORIES names cra, which is not there, did you mean car?\n"
