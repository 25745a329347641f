"""Promises of hub about names: a folder wins, then what is bundled, then the Hub; every failure is one sentence."""

from types import SimpleNamespace

import pytest

from mobilemoe.errors import ModelNotFoundError
from mobilemoe.hub import ASSETS, find_model, with_commit


@pytest.fixture(autouse=True)
def empty_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hub(monkeypatch):
    """A Hub that answers with `hub.answer` (a path or an exception) and remembers what it was asked."""
    seen = SimpleNamespace(asked=[], answer=None)

    def download(hub_id, revision, *, weights):
        seen.asked.append((hub_id, revision, weights))
        if isinstance(seen.answer, Exception):
            raise seen.answer
        return seen.answer

    monkeypatch.setattr("mobilemoe.hub.download.download", download)
    return seen


def refusal(name) -> str:
    with pytest.raises(ModelNotFoundError) as caught:
        find_model(name)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_the_bundled_model_is_found_by_name_wherever_one_stands():
    assert find_model("nano") == ASSETS / "nano"
    assert (find_model("nano") / "tokenizer.json").is_file()


@pytest.mark.parametrize("name", ["", "  ", "\n"])
def test_an_empty_name_is_said_to_be_one(name):
    """An unset variable in a script, not the folder where one stands."""
    assert "the model's name is empty" in refusal(name)


@pytest.mark.parametrize("name", ["model", "org/model", "nano"])
def test_a_folder_of_that_name_wins(name, tmp_path, hub):
    (tmp_path / name).mkdir(parents=True)
    assert find_model(name).resolve() == tmp_path / name
    assert find_model(tmp_path / name) == tmp_path / name
    assert hub.asked == []


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "is a file: give the folder" in refusal("model.safetensors")
    (tmp_path / "model.gguf").write_bytes(b"")
    assert "model.gguf is a file of llama.cpp: `mobilemoe convert`" in refusal("model.gguf")


@pytest.mark.parametrize("name", ["missing", "../nano", "/missing/folder", "a/b/c", "nano/", "nan o", "..."])
def test_a_name_that_is_nothing_lists_what_there_is_and_asks_no_network(name, hub, tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    text = refusal(name)
    assert "nano" in text
    assert "ORG/NAME" in text
    assert hub.asked == []


@pytest.mark.parametrize("name", ["org/na..me", "org/name.git", f"org/{'n' * 100}"])
def test_a_name_that_the_hub_forbids_is_refused_in_one_sentence(name):
    assert "no model of the Hub can have that name" in refusal(name)


def test_a_text_in_place_of_a_name_is_refused_in_one_sentence(hub):
    assert "cannot be looked up: File name too long" in refusal("Once upon a time " * 100)


@pytest.mark.parametrize("revision", ["v1", "0123456789abcdef0123456789abcdef01234567", "refs/pr/3"])
def test_a_revision_is_asked_for(revision, hub, tmp_path):
    hub.answer = tmp_path
    assert find_model(f"org/model@{revision}") == tmp_path
    assert find_model("org/model", weights=False) == tmp_path
    assert hub.asked == [("org/model", revision, True), ("org/model", None, False)]


def test_a_name_with_its_commit_means_the_same_for_ever(hub, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    hub.answer = tmp_path / "snapshots" / commit
    assert with_commit("org/model") == with_commit("org/model@v1") == f"org/model@{commit}"
    assert with_commit(f"org/model@{commit}") == f"org/model@{commit}"
    assert with_commit("nano") == "nano"
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert with_commit("org/model") == "org/model"
