"""What a worker claims and records: runs settled by their key, failures in one line, the version of the code."""

import pytest

from mobilemoe.sweep import worker
from mobilemoe.sweep.runs import grid_runs
from mobilemoe.sweep.table import add_row, read_rows
from mobilemoe.sweep.units import units
from mobilemoe.sweep.worker import _left, code_version, record_failure, settled

pytest_plugins = ["sweep_runs"]


def test_settled_are_the_finished_and_the_failed_and_a_finished_key_counts(grid, tmp_path):
    first, second, third, _ = grid_runs(grid())
    assert settled(tmp_path) == {}
    record_failure(tmp_path, first, "wrong")
    record_failure(tmp_path, second, "wrong")
    for run in (second, third):
        add_row(tmp_path / "runs.csv", {"id": run.id, "loss": 1.0, "key": run.key})
    assert settled(tmp_path) == {run.id: run.key for run in (first, second, third)}
    add_row(tmp_path / "runs.csv", {"id": second.id, "loss": 1.0, "key": "another"})
    assert settled(tmp_path)[second.id] == "another"


def test_a_run_of_another_recipe_under_a_settled_name_is_left_to_do(grid):
    runs = grid_runs(grid())
    (unit,) = units(runs[:1])
    assert _left(unit, {}) == (runs[0],)
    assert _left(unit, {runs[0].id: runs[0].key}) == ()
    assert _left(unit, {runs[0].id: "another"}) == (runs[0],)


def test_a_failure_is_one_line_whatever_the_reason_is(grid, tmp_path):
    run = grid_runs(grid())[0]
    record_failure(tmp_path, run, 'RuntimeError: "shapes", a\n  b\tc')
    assert read_rows(tmp_path / "failures.csv") == [
        {"id": run.id, "block": "all", "reason": 'RuntimeError: "shapes", a b c', "key": run.key}
    ]
    record_failure(tmp_path, run, "again")
    assert [row["reason"] for row in read_rows(tmp_path / "failures.csv")] == ["again"]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose code the version is taken of."""
    (tmp_path / "sweep").mkdir()
    (tmp_path / "model").mkdir()
    monkeypatch.setattr(worker, "__file__", str(tmp_path / "sweep" / "worker.py"))
    (tmp_path / "model" / "norm.py").write_text("one")
    (tmp_path / "config.py").write_text("two")

    def version() -> str:
        code_version.cache_clear()
        return code_version()

    yield tmp_path, version
    code_version.cache_clear()


def test_the_version_is_that_of_the_code_that_a_result_depends_on(package):
    root, version = package
    before = version()
    assert version() == before
    assert len(before) == 12
    (root / "cli.py").write_text("no result depends on it")
    (root / "model" / "notes.txt").write_text("nor on this")
    assert version() == before
    (root / "model" / "norm.py").write_text("one, changed")
    changed = version()
    assert changed != before
    (root / "model" / "norm.py").rename(root / "model" / "norms.py")
    assert version() not in (before, changed)
