"""The tables of a sweep: a whole row for each run, also with several writers; tables of another sweep are refused."""

import csv
import subprocess
import sys

import pytest

from mobilemoe.errors import TrainError
from mobilemoe.sweep.table import add_row, claimed, read_rows, remove_rows, write_documents
from refusals import refusal


def test_rows_are_added_replaced_and_removed(tmp_path):
    path = tmp_path / "rows.csv"
    add_row(path, {"id": "a", "key": "k", "loss": 1.5})
    add_row(path, {"id": "b", "key": "k", "loss": "one, two"})
    add_row(path, {"id": "a", "key": "k", "loss": 2})
    rows = [{"id": "b", "key": "k", "loss": "one, two"}, {"id": "a", "key": "k", "loss": "2"}]
    assert read_rows(path) == rows
    with pytest.raises(TrainError, match="other columns"):
        add_row(path, {"id": "c", "key": "k", "gain": 1})
    remove_rows(path, {"b"})
    assert [row["id"] for row in read_rows(path)] == ["a"]
    remove_rows(path, {"a"})
    assert read_rows(path) == []


def test_many_processes_lose_no_row(tmp_path):
    script = (
        "import sys; from mobilemoe.sweep.table import add_row; from pathlib import Path\n"
        "for n in range(20): add_row(Path(sys.argv[1]), {'id': sys.argv[2] + str(n), 'key': 'k'})"
    )
    children = [subprocess.Popen([sys.executable, "-c", script, tmp_path / "rows.csv", name]) for name in "ab"]
    assert [child.wait() for child in children] == [0, 0]
    assert {row["id"] for row in read_rows(tmp_path / "rows.csv")} == {f"{a}{n}" for a in "ab" for n in range(20)}


def test_a_claim_is_one_processs_alone(tmp_path):
    with claimed(tmp_path / "run" / ".claim") as first, claimed(tmp_path / "run" / ".claim") as second:
        assert (first, second) == (True, False)
    with claimed(tmp_path / "run" / ".claim") as again:
        assert again


def test_a_file_of_others_is_refused_by_name(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("name,loss\na,1\n")
    assert "runs.csv is no table of a sweep: it has no column 'id'" in refusal(lambda: read_rows(path), TrainError)
    path.write_text("id,key,loss\na,k,1\nb,k\n")
    assert "line 3, has 2 cells where the header has 3" in refusal(lambda: read_rows(path), TrainError)
    for call in (lambda: add_row(path, {"id": "c", "key": "k", "loss": 1}), lambda: remove_rows(path, {"a"})):
        refusal(call, TrainError)
    assert path.read_text() == "id,key,loss\na,k,1\nb,k\n"  # and left as it was


def test_a_row_with_other_columns_is_refused_with_those(tmp_path):
    add_row(tmp_path / "runs.csv", {"id": "a", "key": "k", "loss": 1})
    sentence = refusal(lambda: add_row(tmp_path / "runs.csv", {"id": "b", "key": "k", "error": 1}), TrainError)
    assert "['error', 'loss']" in sentence
    assert "another --out" in sentence


def test_values_come_back_as_their_text_whatever_is_in_them(tmp_path):
    odd = {"id": "a", "key": "k", "reason": 'quotes ", commas, and\nlines', "loss": 1e-7}
    add_row(tmp_path / "runs.csv", odd)
    assert read_rows(tmp_path / "runs.csv") == [{name: str(value) for name, value in odd.items()}]


def test_documents_are_written_whole_into_a_folder_of_their_own(tmp_path):
    rows = [{"domain": "books", "document": f"book {n}", "targets": n, "nats": n / 2} for n in range(1, 4)]
    write_documents(tmp_path / "documents" / "run.csv", rows)
    write_documents(tmp_path / "documents" / "run.csv", rows[:2])
    with (tmp_path / "documents" / "run.csv").open(newline="") as handle:
        assert [row["document"] for row in csv.DictReader(handle)] == ["book 1", "book 2"]


def test_removing_all_rows_removes_the_file_and_removing_none_is_no_fault(tmp_path):
    remove_rows(tmp_path / "failures.csv", {"a"})
    assert not (tmp_path / "failures.csv").exists()
    add_row(tmp_path / "failures.csv", {"id": "a", "key": "k"})
    remove_rows(tmp_path / "failures.csv", {"b"})
    assert len(read_rows(tmp_path / "failures.csv")) == 1
