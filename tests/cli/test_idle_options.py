"""An option that would do nothing is refused, so that nobody takes a result for an answer to it."""

import pytest

TEXT = ("eval", "nano", "--text", "text.jsonl")
NO_SUITE = "is for benchmarks: give a --suite too, or leave it out"
ROUTING = ("info", "nano", "--routing", "a river")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((*TEXT, "--limit", "5"), f"--limit {NO_SUITE}"),
        ((*TEXT, "--data", "folder"), f"--data {NO_SUITE}"),
        ((*TEXT, "--out", "results"), f"--out {NO_SUITE}"),
        ((*TEXT, "--cache", "folder"), f"--cache {NO_SUITE}"),
        ((*TEXT, "--training", "text.jsonl"), f"--training {NO_SUITE}"),
        ((*TEXT, "--allow-code"), f"--allow-code {NO_SUITE}"),
        ((*TEXT, "--chat"), f"--chat {NO_SUITE}"),
        ((*TEXT, "--no-chat"), f"--chat {NO_SUITE}"),
        (
            ("eval", "nano", "--suite", "piqa", "--window", "64"),
            "--window is for --text: give one too, or leave it out",
        ),
        ((*TEXT, "--always-top", "1"), "--always-top is for --cache-prior: give one too, or leave it out"),
        ((*TEXT, "--cached-experts", "5"), "--cached-experts is for --cache-prior"),
        ((*TEXT, "--skip", "random"), "--skip is for --capacity"),
        (("run", "nano", "Hello", "--always-top", "1"), "--always-top is for --cache-prior"),
        ((*ROUTING, "--verify"), "--verify and --routing are two questions: ask them one by one"),
        ((*ROUTING, "--context", "64"), "--context and --routing are two questions: ask them one by one"),
        (("info", "nano", "--png", "x.png"), "--png is for --routing"),
        (("info", "--engine", "--verify"), "--verify is for a MODEL: leave --engine out"),
        (("info", "--engine", "--routing", "a"), "--routing is for a MODEL: leave --engine out"),
        (("convert", "nano", "x", "--format", "bf16", "--group-axis", "out"), "--group-axis is for --format int4"),
        (("convert", "nano", "x", "--format", "engine", "--group-axis", "in"), "--group-axis is for --format int4"),
        (("bench", "nano", "--group-axis", "in"), "--group-axis is for random weights: leave it out, or add --random"),
        (("fit", "runs.csv", "--vocabulary", "1000"), "--vocabulary is for --report"),
        (("fit", "runs.csv", "--context", "1000"), "--context is for --report"),
    ],
)
def test_an_option_without_an_effect_is_refused(fails, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.jsonl").write_text('{"text": "A river."}\n')
    assert sentence in fails(2, *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["text.jsonl"]


def test_what_takes_no_file_is_refused_before_the_work(fails, tmp_path):
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "below"
    for arguments in (
        (*ROUTING, "--png", place),
        ("bench", "nano", "--png", place),
        ("profile", "device", "--out", f"{place}.toml"),
        ("fit", "missing.csv", "--out", place),
    ):
        assert f"{tmp_path}/file: File exists" in fails(1, *arguments)


def test_a_shape_without_weights_is_called_so(fails):
    assert "S is a shape without weights: it is for `info` and `bench --random`" in fails(1, "run", "S", "Hi")
