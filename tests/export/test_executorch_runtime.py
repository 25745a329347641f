"""ExecuTorch's runtime computes what our engine computes from the same weights. `make test-doors`."""

import dataclasses

import numpy as np
import pytest

import mobilemoe
from conversions import INT4_IN, INT4_OUT, relative_rms
from mobilemoe.checkpoint import write_random
from mobilemoe.config_rope import RopeScaling
from mobilemoe.export.executorch import PROGRAM, write_executorch
from mobilemoe.hub import find_model
from mobilemoe.tokenizer import Tokenizer
from model_configs import GROUPED_QUERIES, NANO_IDS
from places import HELDOUT
from runtimes import PROMPTS, perplexity

pytestmark = pytest.mark.runtimes
TARGET = "ExecuTorch"

FAMILY = dataclasses.replace(GROUPED_QUERIES, max_position_embeddings=512, **NANO_IDS, vocab_size=16_384)
DENSE = {
    "ffn_type": "dense",
    "intermediate_size": 96,
    "intermediate_size_mlp": 0,
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
}
CASES = {
    "family": {"rope_scaling": RopeScaling(original_max_position_embeddings=64)},
    "no shared expert": {"intermediate_size_mlp": 0, "tie_word_embeddings": False},
    "softmax": {"router_score": "softmax", "routed_scaling_factor": 1.5, "qk_norm": "projection_weight"},
    "dense": {**DENSE, "qk_norm": "head_weight", "attention_scale": 0.4},
    "no norm of queries and keys": {"qk_norm": "none"},
}


class Program:
    """A program in ExecuTorch's runtime, called as its text runner calls it."""

    def __init__(self, folder):
        import executorch.extension.llm.custom_ops.custom_ops
        import executorch.kernels.quantized  # noqa: F401  # as the import above, it registers operators
        import torch
        from executorch.runtime import Runtime

        self._torch = torch
        self.program = Runtime.get().load_program(folder / PROGRAM)
        self.forward = self.program.load_method("forward")

    def value(self, name):
        return self.program.load_method(name).execute([])

    def logits(self, ids, start=0):
        """Of the last id; the ids before `start` are in the cache."""
        inputs = [self._torch.tensor([ids]), self._torch.tensor([start])]
        return self.forward.execute(inputs)[0][0].numpy().copy()

    def greedy(self, ids, count):
        found = [int(self.logits(ids).argmax())]
        while len(found) < count:
            found.append(int(self.logits(found[-1:], len(ids) + len(found) - 1).argmax()))
        return found


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    pytest.importorskip("executorch")
    folder = tmp_path_factory.mktemp("nano") / "nano"
    report = write_executorch(find_model("nano"), folder, 512)
    assert report.kinds["routed"].max_abs == report.kinds["embedding"].max_abs == 0
    assert report.kinds["attention"].relative_rms < 0.002
    return folder


@pytest.mark.parametrize(("name", "axis"), [*((name, "in") for name in CASES), ("family", "out")])
def test_logits_are_the_same_in_prefill_and_decoding(name, axis, tmp_path, conversion):
    pytest.importorskip("executorch")
    write_random(tmp_path / "ours", dataclasses.replace(FAMILY, **CASES[name]), seed=5, format="int4", group_axis=axis)
    report = write_executorch(tmp_path / "ours", tmp_path / "theirs", 256)
    theirs, ours = Program(tmp_path / "theirs"), mobilemoe.load(tmp_path / "ours", activations="fp32")
    ids = np.random.default_rng(6).integers(0, 16_000, 200).tolist()
    ours_TV = ours.logits(ids)
    found = {149: theirs.logits(ids[:150]), 189: theirs.logits(ids[150:190], 150)}
    found |= {place: theirs.logits([ids[place]], place) for place in range(190, 200)}
    for place, logits in found.items():
        assert np.corrcoef(logits, ours_TV[place])[0, 1] > (0.9999 if axis == "in" else 0.999), place
    if name == "family":
        source, error = INT4_IN if axis == "in" else INT4_OUT, relative_rms(list(found.values()), ours_TV[list(found)])
        conversion(source, TARGET, report)
        conversion(source, TARGET, error, "logits", "executorch")


def test_the_program_answers_what_the_runner_asks(nano):
    program = Program(nano)
    assert program.value("get_max_seq_len") == program.value("get_max_context_len") == [512]
    assert program.value("get_vocab_size") == [16_384]
    assert program.value("get_bos_id") == [16_378]
    assert program.value("get_eos_ids") == [16_379, 16_382, 16_383]
    assert all(program.value(name) == [True] for name in ("use_kv_cache", "enable_dynamic_shape"))


def test_the_size_is_that_of_the_packed_weights(nano):
    config = mobilemoe.load("nano").config
    experts, attention, embedding = 42_467_328, 3_538_944, config.vocab_size * config.hidden_size
    router = 4 * config.num_hidden_layers * config.num_local_experts * config.hidden_size
    expected = experts * 6 / 8 + (attention + 2 * embedding) * 4.5 / 8 + router + 2 * 4 * 512 * config.head_dim
    assert (nano / PROGRAM).stat().st_size == pytest.approx(expected, rel=0.005)


def test_nano_says_the_same_and_continues_prompts_the_same(nano, conversion):
    theirs, ours = Program(nano), mobilemoe.load("nano", activations="fp32")
    same = equal = 0  # first tokens, and continuations of 24 tokens
    errors = []
    for prompt in PROMPTS:
        ids = ours.tokenizer.encode(prompt, bos=True)
        a, b = theirs.logits(ids), ours.logits(ids)[-1]
        assert np.corrcoef(a, b)[0, 1] > 0.998, prompt  # XNNPACK rounds activations to 8 bits, ours are fp32 here
        errors.append(relative_rms(a, b))
        same += int(a.argmax() == b.argmax())
        equal += theirs.greedy(ids, 24) == ours_greedy(ours, ids, 24)
    assert same >= 19
    assert equal >= 10
    conversion(INT4_IN, TARGET, float(np.mean(errors)), "logits of nano", "executorch")


def ours_greedy(model, ids, count):
    found = list(ids)
    while len(found) < len(ids) + count:
        found.append(int(model.logits(found)[-1].argmax()))
    return found[len(ids) :]


def test_perplexity_is_the_same_within_half_a_percent(nano, conversion):
    theirs, ours = Program(nano), mobilemoe.load("nano", activations="fp32")
    ids = ours.tokenizer.encode(HELDOUT.read_text()[:20_000], bos=True)
    found = []
    for start in range(0, 2_048, 256):
        window = ids[start : start + 256]
        decoded = [theirs.logits([token], place) for place, token in enumerate(window)]
        found.append((perplexity(np.array(decoded), window), perplexity(ours.logits(window), window)))
    a, b = np.exp(np.log(np.array(found)).mean(0))
    assert abs(a / b - 1) < 0.005, (a, b)
    conversion(INT4_IN, TARGET, abs(a / b - 1), "perplexity of nano", "executorch", accepted=0.005)


def test_the_text_runner_reads_text_and_continues_it(nano):
    from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner
    from pytorch_tokenizers import CppHFTokenizer

    ours, theirs = Tokenizer.load(nano), CppHFTokenizer()
    theirs.load(str(nano / "tokenizer.json"))
    for line in HELDOUT.read_text()[:40_000].splitlines():
        assert theirs.encode(line, 1, 0) == ours.encode(line, bos=True)
    runner, pieces = TextLLMRunner(str(nano / PROGRAM), str(nano / "tokenizer.json")), []
    config = GenerationConfig(echo=False, max_new_tokens=24, temperature=0.0, num_bos=1)
    runner.generate("def add(a, b):", config, pieces.append)
    program = Program(nano)
    assert "".join(pieces) == ours.decode(program.greedy(ours.encode("def add(a, b):", bos=True), 24))
