"""The native draft head guesses what the reference guesses, and what it guesses changes the speed of a text alone."""

import shutil

import numpy as np
import pytest
import torch

from engine_models import EACH_ISA, ids_for, write_small
from mobilemoe.checkpoint import Checkpoint
from mobilemoe.checkpoint.draft import DRAFT, DraftShape, open_draft, write_draft
from mobilemoe.engine import Engine
from mobilemoe.errors import CheckpointError, UsageError
from mobilemoe.model import MobileMoE
from mobilemoe.model.draft import Draft
from mobilemoe.sampling import Sampling

SHAPE = DraftShape(96, 64, 96, layers=(0, 2))
SHORTLIST = np.arange(96) * 3 + 1
RULES = ({}, {"temperature": 0.8, "seed": 1}, {"temperature": 3.0, "logit_bias": {4: 100.0, 7: 100.0}, "seed": 2})


@pytest.fixture(scope="module", params=["in", "out"])
def folder(request, tmp_path_factory):
    """A random model with a random draft head that reads two of its three layers."""
    path = write_small(tmp_path_factory.mktemp("drafting") / "model", request.param)
    rng = np.random.default_rng(4)
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPE.matrices.items()}
    write_draft(path / DRAFT, weights.__getitem__, SHORTLIST, SHAPE.layers)
    return path


def reference(folder) -> tuple[MobileMoE, Draft]:
    with Checkpoint.open(folder) as checkpoint:
        model = MobileMoE(checkpoint.config).eval()
        model.load_weights(checkpoint.weight)
        file = open_draft(folder, checkpoint.config)
    head = Draft(SHAPE.hidden_size, SHAPE.width, SHAPE.shortlist, model.config.rms_norm_eps, SHAPE.layers)
    for name in SHAPE.matrices:
        head.get_submodule(name).weight.data = torch.from_numpy(file.weight(name))
    head.shortlist_K.copy_(torch.from_numpy(SHORTLIST))
    return model, head


@torch.inference_mode()
def expected_guesses(folder, ids: list[int], token: int) -> list[int]:
    """Four guesses of what follows `ids` and `token`, step by step in PyTorch."""
    model, head = reference(folder)
    outputs = []
    hooks = [
        model.model.layers[layer].register_forward_hook(lambda *each: outputs.append(each[2][0])) for layer in (0, 2)
    ]
    x_BTD, _ = model.hidden(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    state, step, guesses = torch.cat([part[0, -1] for part in (x_BTD, *outputs)]), head.begin, []
    for _ in range(4):
        state, logits_K = step(state, model.model.embed_tokens.weight[token])
        token, step = int(head.shortlist_K[logits_K.argmax()]), head
        guesses.append(token)
    return guesses


@EACH_ISA
def test_the_guesses_are_those_of_the_reference(folder, isa, monkeypatch):
    monkeypatch.setenv("MOBILEMOE_ISA", isa)
    engine = Engine(folder, activations="fp32", speculate="draft")
    for seed in range(3):
        ids = ids_for(engine, 9 + 5 * seed, seed=seed)
        session = engine.session()
        session.append(ids[:-1])
        [guesses] = engine.native.draft([(engine.speculation(), session.native, ids[-1])], 1)
        assert guesses == expected_guesses(folder, ids[:-1], ids[-1])


def write(engine: Engine, prompts: list[list[int]], new: int) -> list[list[int]]:
    batch, given = engine.batch(), [[] for _ in prompts]
    for prompt, rule in zip(prompts, RULES, strict=True):
        batch.join(prompt, Sampling(**rule))
    while len(batch):
        for number, choice in batch.step():
            given[number].append(choice.token)
            if len(given[number]) == new:
                batch.leave(number)
    return given


@EACH_ISA
@pytest.mark.parametrize("kind", [{}, {"kv": "fp16"}, {"activations": "fp32"}], ids=str)
def test_texts_are_the_same_with_the_head_and_without(folder, isa, kind, monkeypatch):
    monkeypatch.setenv("MOBILEMOE_ISA", isa)
    plain, guessing = Engine(folder, speculate="off", **kind), Engine(folder, speculate="draft", **kind)
    prompts = [ids_for(plain, 20 + 40 * at, seed=at) for at in range(len(RULES))]
    expected = write(plain, prompts, 40)
    assert write(guessing, prompts, 40) == expected
    assert [write_one(guessing, prompt, rule) for prompt, rule in zip(prompts, RULES, strict=True)] == expected
    assert guessing.drafts.proposed > 4 * 40


def write_one(engine: Engine, prompt: list[int], rule: dict) -> list[int]:
    return engine.generate_ids(prompt, max_new_tokens=40, **rule)


def test_the_choice_between_lookup_and_head_changes_no_text_either(folder):
    plain, guessing = Engine(folder, speculate="off"), Engine(folder)
    prompts = [(ids_for(plain, 11, seed=at) * 9)[: 40 + 20 * at] for at in range(len(RULES))]
    assert write(guessing, prompts, 150) == write(plain, prompts, 150)


def test_a_session_that_was_cut_copied_or_restored_goes_on_without_a_state(folder, tmp_path):
    """What a state belongs to is forgotten with it: there the next token is chosen without a guess of the head."""
    engine = Engine(folder, speculate="draft")
    ids = ids_for(engine, 30)
    session = engine.session()
    session.append(ids[:20])

    def guesses(of) -> list[int]:
        return engine.native.draft([(engine.speculation(), of.native, ids[-1])], 1)[0]

    assert len(guesses(session)) == 4
    other = engine.session()
    other.copy_from(session, 12)
    assert guesses(other) == []
    session.save(tmp_path / "session")
    assert guesses(engine.restore(tmp_path / "session")) == []
    session.truncate(12)
    assert guesses(session) == []
    session.append(ids[12:20])
    assert len(guesses(session)) == 4


def test_a_model_without_a_head_says_so(folder, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    (bare / DRAFT).unlink()
    with pytest.raises(UsageError, match="has no draft head"):
        Engine(bare, speculate="draft")
    assert Engine(bare).generate_ids([1, 2, 3], max_new_tokens=3)
    with pytest.raises(UsageError, match="with max_memory there is no draft head"):
        Engine(folder, speculate="draft", max_memory=2**40)


@pytest.mark.parametrize(
    ("tensor", "array", "message"),
    [
        ("shortlist", SHORTLIST[::-1].astype(np.int32), "ascending numbers below 320"),
        ("layers", np.array([0, 3], np.int32), "ascending numbers below 3"),
        ("head.qweight", np.zeros((96, 32), np.uint8), "head.qweight does not fit the model"),
        ("down_proj.weight_scale", np.full((96, 2), np.inf, np.float16), "holds NaN or infinity"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(folder, tmp_path, tensor, array, message):
    from mobilemoe.checkpoint import SafetensorsFile, write_safetensors

    wrong = tmp_path / "wrong"
    shutil.copytree(folder, wrong)
    with SafetensorsFile(folder / DRAFT) as file:
        arrays = {name: np.array(file.array(name)) for name in file.tensors} | {tensor: array}
        specs = {name: (info.dtype, arrays[name].shape) for name, info in file.tensors.items()}
    write_safetensors(wrong / DRAFT, specs, arrays.__getitem__)
    with pytest.raises(CheckpointError, match=message):
        Engine(wrong)
