"""Names on the Hub get commits when a run begins; a resumed run keeps them, whatever has been published since."""

import json
import types

import pytest

from mobilemoe.errors import DataError, TrainError
from mobilemoe.train.kept_recipe import refuse_other
from mobilemoe.train.pins import pin

pytest_plugins = ["train_runs"]
OLD, NEW = "0" * 40, "1" * 40
HUB = (
    "tokenizer.path=org/words",
    'data.mixture=[{name="web", hub="org/web", weight=1.0}, {name="own", files="*.jsonl", weight=1.0}]',
)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub where everything is at the commit `hub.commit`, but for what is asked for by another."""
    state = types.SimpleNamespace(commit=OLD)

    def download(hub_id, revision, *, weights):
        return tmp_path / "snapshots" / (revision or state.commit)

    class HfApi:
        def dataset_info(self, hub_id, revision=None):
            if state.commit is None:
                raise ConnectionError("no route to host\nand more")
            return types.SimpleNamespace(sha=state.commit)

    monkeypatch.setattr("mobilemoe.hub.download.download", download)
    monkeypatch.setattr("mobilemoe.hub.cached.find_cached", lambda *_, weights: None)
    monkeypatch.setattr("huggingface_hub.HfApi", HfApi)
    monkeypatch.chdir(tmp_path)
    return state


@pytest.fixture
def begun(tmp_path):
    """Begins a run of a recipe, as far as its folder shows."""

    def begin(recipe):
        (tmp_path / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)
        (tmp_path / "run" / "recipe.json").write_text(json.dumps(recipe.model_dump()))
        return tmp_path / "run"

    return begin


def names(recipe) -> list:
    return [recipe.tokenizer.path, *(source.hub for source in recipe.data.mixture)]


def test_a_new_run_gets_the_newest_commits(hub, recipe, tmp_path):
    assert names(pin(recipe(*HUB), tmp_path / "run")) == [f"org/words@{OLD}", f"org/web@{OLD}", None]


def test_what_is_local_stays_as_it_is(hub, recipe, tmp_path):
    assert pin(recipe(), tmp_path / "run") == recipe()


def test_a_run_that_goes_on_keeps_its_commits(hub, recipe, begun, tmp_path):
    run = begun(pin(recipe(*HUB), tmp_path / "none"))
    hub.commit = NEW
    gone_on = pin(recipe(*HUB), run)
    assert names(gone_on) == [f"org/words@{OLD}", f"org/web@{OLD}", None]
    refuse_other(gone_on, run)


def test_another_revision_is_another_recipe(hub, recipe, begun, tmp_path):
    run = begun(pin(recipe(*HUB), tmp_path / "none"))
    hub.commit = NEW
    other = pin(recipe(*HUB, 'data.mixture=[{name="web", hub="org/web@v2", weight=1.0}]'), run)
    with pytest.raises(TrainError, match=f"data.mixture.0.hub was 'org/web@{OLD}' and is 'org/web@{NEW}'"):
        refuse_other(other, run)


def test_a_run_that_began_without_commits_goes_on_without(hub, recipe, begun):
    run = begun(recipe(*HUB))
    assert names(pin(recipe(*HUB), run)) == ["org/words", "org/web", None]


def test_a_hub_that_does_not_answer_is_one_sentence(hub, recipe, tmp_path):
    hub.commit = None
    with pytest.raises(DataError, match=r"^the dataset org/web cannot be opened: no route to host$"):
        pin(recipe(HUB[1]), tmp_path / "run")
