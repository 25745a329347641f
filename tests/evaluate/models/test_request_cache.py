"""Finished requests on disk: found again by their settings alone, whole lines of any writer, refused where unsafe."""

import json
import stat

import pytest

from mobilemoe.errors import DataError
from mobilemoe.evaluate.models import request_cache
from mobilemoe.evaluate.models.request_cache import RequestCache, digest
from refusals import refusal

SETTINGS = {"model": "hash", "kv": "int8"}


def path_of(folder, settings=None):
    return folder / digest(settings or SETTINGS) / "requests.jsonl"


def test_a_digest_is_that_of_the_value_whatever_its_order():
    assert digest({"a": 1, "b": [2, None]}) == digest({"b": [2, None], "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.5}) != digest({"a": "1"})
    assert len(digest("x")) == 32


def test_what_was_put_is_there_for_the_same_settings_and_no_others(tmp_path):
    first = RequestCache(SETTINGS, tmp_path)
    first.put({"a": [-1.5, True], "b": ["naïve 東京", 3, False]})
    assert "a" in first
    again = RequestCache({"kv": "int8", "model": "hash"}, tmp_path)
    assert (again["a"], again["b"]) == ([-1.5, True], ["naïve 東京", 3, False])
    assert "c" not in again
    assert "a" not in RequestCache(SETTINGS | {"kv": "f32"}, tmp_path)


def test_two_writers_lose_nothing_and_the_later_answer_counts(tmp_path):
    one, other = RequestCache(SETTINGS, tmp_path), RequestCache(SETTINGS, tmp_path)
    one.put({"a": [-1.0, False]})
    other.put({"b": [-2.0, False], "a": [-3.0, True]})
    one.put({"c": [-4.0, False]})
    read = RequestCache(SETTINGS, tmp_path)
    assert [read[key] for key in "abc"] == [[-3.0, True], [-2.0, False], [-4.0, False]]


def test_behind_a_torn_line_a_new_one_begins(tmp_path):
    RequestCache(SETTINGS, tmp_path).put({"a": [-1.0, False], "b": [-2.0, False]})
    path = path_of(tmp_path)
    path.write_bytes(path.read_bytes()[:-7])
    after = RequestCache(SETTINGS, tmp_path)
    assert "a" in after
    assert "b" not in after
    after.put({"c": [-3.0, True]})
    read = RequestCache(SETTINGS, tmp_path)
    assert (read["a"], read["c"]) == ([-1.0, False], [-3.0, True])


@pytest.mark.parametrize(
    "entry", [["a", [1, True]], ["a", [float("nan"), True]], ["a", ["x", 1]], ["a", {}], [1, [-1.0, True]], {}, ["a"]]
)
def test_what_has_not_the_form_of_a_result_is_no_result(tmp_path, entry):
    RequestCache(SETTINGS, tmp_path).put({"b": [-1.0, False]})
    with path_of(tmp_path).open("a") as file:
        file.write(json.dumps(entry) + "\n")
    read = RequestCache(SETTINGS, tmp_path)
    assert "a" not in read
    assert "b" in read


def test_settings_stand_beside_the_results_for_people_and_others_may_not_read(tmp_path):
    RequestCache(SETTINGS, tmp_path / "kept").put({"a": [-1.0, False]})
    folder = path_of(tmp_path / "kept").parent
    assert json.loads((folder / "settings.json").read_text()) == SETTINGS
    assert stat.S_IMODE(path_of(tmp_path / "kept").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_file_larger_than_any_evaluation_leaves_is_refused(tmp_path, monkeypatch):
    RequestCache(SETTINGS, tmp_path).put({"a": [-1.0, False]})
    monkeypatch.setattr(request_cache, "MAX_BYTES", 5)
    sentence = refusal(lambda: RequestCache(SETTINGS, tmp_path), DataError)
    assert "more than the 5 that it may have" in sentence
    assert "--cache" in sentence


def test_a_chosen_folder_that_cannot_be_used_is_refused_and_the_users_own_done_without(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    assert "cannot be kept in" in refusal(lambda: RequestCache(SETTINGS, tmp_path / "file"), DataError)
    monkeypatch.setattr(request_cache, "usable_cache", lambda name: tmp_path / "file")
    without = RequestCache(SETTINGS)
    without.put({"a": [-1.0, False]})
    assert without["a"] == [-1.0, False]  # for as long as it lasts
    assert "finished requests cannot be kept" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "in the way"
