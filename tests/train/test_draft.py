"""A draft head learns the model's own distribution some tokens ahead, alone, and comes out beside the model."""

import json

import numpy as np
import pytest
import torch

from cli_calls import mobilemoe_cli  # noqa: F401
from mobilemoe.checkpoint import Checkpoint, save_checkpoint, weights
from mobilemoe.checkpoint.draft import DRAFT, open_draft
from mobilemoe.checkpoint.run_folder import step_folders
from mobilemoe.data.loader import Batch
from mobilemoe.data.packing import NO_TARGET
from mobilemoe.errors import ConfigError
from mobilemoe.presets import family_member
from mobilemoe.quant.draft import trained_draft
from mobilemoe.quant.fake import fake_int4
from mobilemoe.train import draft
from mobilemoe.train.loop import train
from mobilemoe.train.recipe import DraftTable, load_recipe
from random_models import random_model
from recipe_text import data_table
from train_runs import assert_same, rows

pytest_plugins = ["train_runs", "cli_calls"]
pytestmark = pytest.mark.usefixtures("quick")

SMALL = family_member(64, expansion=2, granularity=4, layers=2, vocab_size=96)
TABLE = DraftTable(width=32, shortlist=64, steps=3, layers=(0,))


def prepared(table: DraftTable = TABLE):
    """A model with a head, and a batch of two rows: one of two documents, one with untaught tokens."""
    model = random_model(SMALL).float()
    draft.attach(model, table, seed=1)
    draft.choose_shortlist(model, torch.arange(SMALL.vocab_size))
    rng = np.random.default_rng(2)
    tokens_BT = rng.integers(0, SMALL.vocab_size, (2, 12))
    targets_BT = np.roll(tokens_BT, -1, axis=1)
    targets_BT[:, -1], targets_BT[0, 6], targets_BT[1, :5] = NO_TARGET, NO_TARGET, NO_TARGET
    segments_BT = np.zeros_like(tokens_BT)
    segments_BT[0, 7:] = 1
    positions_BT = np.tile(np.arange(12), (2, 1))
    positions_BT[0, 7:] -= 7
    return model, Batch(tokens_BT, targets_BT, positions_BT, segments_BT, np.zeros_like(tokens_BT))


def test_the_loss_is_the_divergence_place_by_place():
    """Against one place after the other, each from the model's state on."""
    model, batch = prepared()
    states_BTX = draft.states(model, torch.from_numpy(batch.tokens_BT), segments_BT=batch.segments_BT)
    nats_S, agreed_S = draft.divergences(model, states_BTX, batch, 3)
    head, log_p_BTV = draft.head_of(model), model.logits(states_BTX[..., :64]).log_softmax(-1)
    want_S, want_agreed_S, places_S = np.zeros(3), np.zeros(3), np.zeros(3)
    for row in range(2):
        for start in range(12):
            state_D, step = states_BTX[row, start], head.begin
            for ahead in range(1, min(4, 12 - start)):
                at = start + ahead
                embedding_D = model.model.embed_tokens.weight[int(batch.tokens_BT[row, at])]
                (state_D, logits_K), step = step(state_D, embedding_D), head
                same = batch.segments_BT[row, start] == batch.segments_BT[row, at]
                if not same or batch.targets_BT[row, at] == NO_TARGET:
                    continue
                p_K, q_K = log_p_BTV[row, at, head.shortlist_K].exp().detach(), logits_K.softmax(-1).detach()
                want_S[ahead - 1] += float((p_K * (p_K / p_K.sum() / q_K).log()).sum())
                guess = head.shortlist_K[logits_K.argmax()]
                want_agreed_S[ahead - 1] += int(guess == log_p_BTV[row, at].argmax())
                places_S[ahead - 1] += 1
    np.testing.assert_allclose(nats_S.detach(), want_S, rtol=1e-4)
    assert agreed_S.tolist() == want_agreed_S.tolist()
    assert draft.places(batch, 3).tolist() == places_S.tolist()


def test_the_states_are_those_of_the_last_norm_and_of_the_layers():
    model, batch = prepared(DraftTable(width=32, shortlist=64, layers=(0, 1)))
    tokens_BT = torch.from_numpy(batch.tokens_BT)
    states_BTX = draft.states(model, tokens_BT, segments_BT=batch.segments_BT)
    last_BTD, first_BTD, second_BTD = states_BTX.split(64, dim=-1)
    assert torch.equal(last_BTD, model.hidden(tokens_BT, segments_BT=batch.segments_BT)[0])
    assert torch.equal(model.model.norm(second_BTD), last_BTD)  # of two layers the second is the last
    assert not torch.equal(first_BTD, second_BTD)


def test_only_the_head_learns():
    model, batch = prepared()
    states_BTX = draft.states(model, torch.from_numpy(batch.tokens_BT), segments_BT=batch.segments_BT)
    draft.divergences(model, states_BTX, batch, 3)[0].sum().backward()
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    matrices = ("first_proj", "in_proj", "gate_proj", "up_proj", "down_proj", "head")
    assert learning == {f"draft.{name}.weight" for name in matrices}


def test_it_learns_what_the_model_finds_likeliest():
    model, batch = prepared()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    states_BTX = draft.states(model, torch.from_numpy(batch.tokens_BT), segments_BT=batch.segments_BT)
    places_S = torch.from_numpy(draft.places(batch, 3))
    losses = []
    for _ in range(80):
        nats_S, agreed_S = draft.divergences(model, states_BTX, batch, 3)
        losses.append(float((nats_S / places_S).mean().detach()))
        nats_S.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.2 * losses[0]
    likeliest = model.logits(states_BTX[..., :64]).argmax(-1)
    within = torch.isin(likeliest, draft.head_of(model).shortlist_K).float().mean()
    assert agreed_S.sum() > 0.7 * within * places_S.sum()


def test_the_shortlist_holds_the_most_frequent_tokens_in_order():
    model, _ = prepared(DraftTable(width=32, shortlist=32))
    counts_V = torch.zeros(SMALL.vocab_size, dtype=torch.long)
    counts_V[[90, 3, 50]] = torch.tensor([5, 9, 1])
    draft.choose_shortlist(model, counts_V)
    rest = [token for token in range(32) if token != 3][:29]
    assert draft.head_of(model).shortlist_K.tolist() == sorted([3, 50, 90, *rest])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of an INT4 model with nano's vocabulary."""
    folder = tmp_path_factory.mktemp("base") / "model"
    config = family_member(64, expansion=2, granularity=4, layers=2, vocab_size=16384)
    rng = np.random.default_rng(3)
    made = {name: (0.1 * rng.standard_normal(w.shape)).astype(np.float32) for name, w in weights(config).items()}
    save_checkpoint(folder, config, made.__getitem__, format="int4")
    return folder


@pytest.fixture(scope="module")
def recipe_of(base, tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "draft.toml"
    path.write_text(f"""
name = "draft"
tokenizer.path = "nano"
model.init = {json.dumps(str(base))}

{data_table({"books": 0.6, "chat": 0.4})}
[train]
steps = 6
batch_size = 2
sequence_length = 32
learning_rate = 5e-3
optimizer = "muon"
precision = "fp32"
threads = 1
checkpoint_every = 4

[draft]
width = 32
shortlist = 64
steps = 2
layers = [1]
""")
    return lambda *overrides: load_recipe(path, overrides)


@pytest.fixture(scope="module")
def run(recipe_of, quick, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draft, "COUNTED", 2**10)
        assert train(recipe_of(), folder).finished
    return folder


def test_the_metrics_say_how_often_head_and_model_agree(run):
    for row in rows(run):
        assert len(row["agreed"]) == 2
        assert all(0 <= share <= 1 for share in row["agreed"])
        assert row["loss"] >= 0


def test_an_interrupted_run_ends_with_the_same_bits(run, recipe_of, stop_in, tmp_path, monkeypatch):
    stop_in(3)
    monkeypatch.setattr(draft, "COUNTED", 2**10)
    assert not train(recipe_of(), tmp_path / "run").finished
    monkeypatch.setattr(draft, "COUNTED", 2**10)
    assert train(recipe_of(), tmp_path / "run").finished
    assert_same(tmp_path / "run", run)


def test_quantize_puts_the_trained_head_beside_the_model_as_it_was(run, base, tmp_path, mobilemoe_cli):  # noqa: F811
    ended = mobilemoe_cli("quantize", run, tmp_path / "out", "--json")
    assert ended.status == 0, ended.err
    with Checkpoint.open(base) as before, Checkpoint.open(tmp_path / "out") as after:
        assert all(before.array(name).tobytes() == after.array(name).tobytes() for name in before.tensors)
        written = open_draft(tmp_path / "out", after.config)
    trained = trained_draft(step_folders(run)[-1])
    for name in ("in_proj", "head"):
        rounded = fake_int4(torch.from_numpy(trained[f"{name}.weight"])).numpy()
        np.testing.assert_array_equal(written.weight(name), rounded)
    told = mobilemoe_cli("info", tmp_path / "out", "--json").json["draft"]
    assert (told["width"], told["shortlist"], told["layers"]) == (32, 64, [1])
    assert told["file_bytes"] == (tmp_path / "out" / DRAFT).stat().st_size


def test_a_head_is_not_put_beside_other_weights(run, base, tmp_path, mobilemoe_cli):  # noqa: F811
    other = tmp_path / "other"
    with Checkpoint.open(base) as checkpoint:
        changed = {name: checkpoint.weight(name) for name in checkpoint.names}
        changed["model.norm.weight"] = changed["model.norm.weight"] + 1
        save_checkpoint(other, checkpoint.config, changed.__getitem__, format="bf16")
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["model"]["init"] = str(other)
    moved = tmp_path / "run"
    (moved / "checkpoints").mkdir(parents=True)
    (moved / "recipe.json").write_text(json.dumps(recipe))
    (moved / "checkpoints" / "step-00000006").symlink_to(step_folders(run)[-1])
    ended = mobilemoe_cli("quantize", moved, tmp_path / "out")
    assert ended.status == 1
    assert "other weights" in ended.err
    assert not (tmp_path / "out").exists()


REFUSED = {
    "lora.rank=4": "remove the tables qat and lora",
    "qat.group_axis=in": "remove the tables qat and lora",
    "train.validate_every=5": "set train.validate_every to 0",
    "draft.shortlist=63": "draft.shortlist is 63",
    "train.sequence_length=3": "rows need more tokens",
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_cannot_be_combined_is_refused(recipe_of, override):
    with pytest.raises(ConfigError, match=REFUSED[override]):
        recipe_of(override)


def test_a_layer_that_the_model_has_not_is_refused():
    with pytest.raises(ConfigError, match=r"draft.layers is \[2\], but the model's are 0 to 1"):
        draft.attach(random_model(SMALL), DraftTable(width=32, shortlist=64, layers=(2,)), seed=0)


def test_a_shortlist_longer_than_the_vocabulary_is_refused():
    with pytest.raises(ConfigError, match="the vocabulary has 96 entries"):
        draft.attach(random_model(SMALL), DraftTable(width=32, shortlist=128), seed=0)
