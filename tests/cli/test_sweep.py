"""What `mobilemoe sweep` prints."""

import pytest

from places import RECIPES

pytest_plugins = ["cli_calls"]
TINY = RECIPES / "sweep" / "tiny.toml"


def test_list_shows_every_run_and_what_all_cost(mobilemoe_cli):
    shown = mobilemoe_cli("sweep", RECIPES / "sweep" / "grid.toml", "--list").out
    assert "d256x7-e32g8s0-t24576000 " in shown
    assert "d512x13-dense-t98304000  (held out)" in shown
    assert shown.splitlines()[-1].startswith("131 runs, 3,416 M tokens to train on (own)")
    assert len(shown.splitlines()) == 1 + 131 + 1
    listed = mobilemoe_cli("sweep", TINY, "--list", "--json", "--only", "*dense*").json
    assert [run["experts"] for run in listed["runs"]] == [1] * 9
    assert listed["tokens"] == sum(run["tokens"] for run in listed["runs"])
    assert all(run["expected_seconds"] > 0 for run in listed["runs"])


def test_a_sweep_says_how_each_run_ended_and_what_is_next(mobilemoe_cli, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = ["--only", "d32x2-dense-t8192", "--set", "blocks.size.tokens=[8192]", "--set", "train.batch_size=64"]
    ended = mobilemoe_cli("sweep", TINY, "--out", tmp_path, *options)
    assert ended.status == 0
    assert "[1/1] d32x2-dense-t8192  loss " in ended.err
    assert "1 of 1 run finished" in ended.out
    assert f"mobilemoe fit {tmp_path / 'runs.csv'}" in ended.out
    again = mobilemoe_cli("sweep", TINY, "--out", tmp_path, *options, "--json")
    assert again.json["finished"] == ["d32x2-dense-t8192"]
    assert again.err == ""


@pytest.mark.parametrize(
    ("status", "arguments", "sentence"),
    [
        (1, ["nowhere.toml"], "nowhere.toml does not exist"),
        (1, [TINY, "--set", "blocks.size.tokens=[-1]"], "blocks.size.tokens.0 is -1"),
        (2, [TINY, "--only", "nobody"], "no run and no block 'nobody'"),
        (2, [TINY, "--set", "nothing"], "is not ENTRY=VALUE"),
    ],
)
def test_a_mistake_is_one_sentence(fails, status, arguments, sentence):
    assert sentence in fails(status, "sweep", *arguments)
