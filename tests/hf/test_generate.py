"""`generate` of transformers: greedy as our own decoder, sampling, beams, caches, batches, pipelines."""

import re

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, ContinuousBatchingConfig, GenerationConfig, pipeline

import mobilemoe
from hf_models import FAMILY_LIKE, FORMS, opened, tokens, write
from mobilemoe.hub import ASSETS
from model_configs import but, loaded
from places import ROOT

UNTIED = but(FAMILY_LIKE, tie_word_embeddings=False)  # with random tied weights, each token is followed by itself


@pytest.fixture(scope="module", params=FORMS)
def folder(request, tmp_path_factory):
    return write(tmp_path_factory.mktemp("hf") / "model", UNTIED, request.param)


def continued(model, ids_BT, **options):
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, **options}
    return model.generate(ids_BT, **options)


def test_greedy_tokens_are_those_of_our_own_model(folder):
    ours, ids = loaded(folder), tokens(1, 5)
    want = ids
    for _ in range(12):
        with torch.no_grad():
            want = torch.cat([want, ours(want)[:, -1:].argmax(-1)], dim=1)
    assert len(want[0, 5:].unique()) > 4
    assert torch.equal(continued(opened(folder), ids), want)


@pytest.mark.parametrize("options", [{"use_cache": False}, {"cache_implementation": "static", "disable_compile": True}])
def test_the_cache_makes_no_difference(options, folder):
    model, ids_BT = opened(folder), tokens(2, 5)
    assert torch.equal(continued(model, ids_BT, **options), continued(model, ids_BT))


def test_prompts_of_a_batch_are_continued_as_alone(folder):
    model, short, long = opened(folder), tokens(1, 4), tokens(1, 9, seed=3)
    padded = torch.cat([torch.cat([torch.zeros(1, 5, dtype=torch.long), short], dim=1), long])
    mask = torch.tensor([[0] * 5 + [1] * 4, [1] * 9])
    together = continued(model, padded, attention_mask=mask)
    assert torch.equal(together[0, 9:], continued(model, short)[0, 4:])
    assert torch.equal(together[1, 9:], continued(model, long)[0, 9:])


def test_speculation_changes_no_token(folder):
    model, ids = opened(folder), tokens(1, 5)
    assert torch.equal(continued(model, ids, prompt_lookup_num_tokens=3), continued(model, ids))


def test_continuous_batching_changes_no_token(tmp_path):
    model, ids_BT = opened(write(tmp_path / "model", UNTIED)), tokens(2, 5)
    rules = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0)
    small = ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=16)
    batched = model.generate_batch(ids_BT.tolist(), generation_config=rules, continuous_batching_config=small)
    want = continued(model, ids_BT, max_new_tokens=6)[:, 5:].tolist()
    assert sorted(result.generated_tokens for result in batched.values()) == sorted(want)


def test_sampling_repeats_with_its_seed_and_beams_find_a_likelier_text(folder):
    model, ids = opened(folder), tokens(1, 5)

    def sampled(seed):
        torch.manual_seed(seed)
        return continued(model, ids, do_sample=True, temperature=5.0)

    assert torch.equal(sampled(1), sampled(1))
    assert not torch.equal(sampled(1), sampled(2))

    def log_probability(text):
        with torch.no_grad():
            scores = model(text).logits.log_softmax(-1)[:, 4:-1]
        return scores.gather(-1, text[:, 5:, None]).sum().item()

    beams = continued(model, ids, num_beams=4)
    assert log_probability(beams) >= log_probability(continued(model, ids)) - 1e-4


def test_nano_writes_what_our_own_model_writes():
    nano, prompt = ASSETS / "nano", "Once upon a time there was a little"
    tokenizer = AutoTokenizer.from_pretrained(nano)
    ours = mobilemoe.load("nano", backend="torch")
    assert tokenizer(prompt)["input_ids"] == ours.encode(prompt)
    messages = [{"role": "user", "content": "Who wrote it?"}]
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"] == ours.encode(
        messages=messages
    )
    write_on = pipeline("text-generation", model=opened(nano), tokenizer=tokenizer)
    text = write_on(prompt, max_new_tokens=8, do_sample=False, return_full_text=False)[0]["generated_text"]
    assert text == ours.generate(prompt, max_new_tokens=8, temperature=0)
    assert np.isin(list(ours.stop_ids), write_on.model.generation_config.eos_token_id).all()


def test_the_example_of_the_documentation_runs(capsys):
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(import mobilemoe\.hf.*?)```", page, re.DOTALL)
    exec(example, {})
    prompt = "Once upon a time there was a little"
    continued = mobilemoe.load("nano", backend="torch").generate(prompt, max_new_tokens=32, temperature=0)
    assert capsys.readouterr().out == f"{prompt}{continued}\n"
