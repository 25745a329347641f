"""recipes/household: a small model writes about the household; only sensible and new documents are kept."""

import importlib
import json
import shutil
import sys
from functools import partial
from itertools import islice

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from places import RECIPES

HOUSEHOLD = RECIPES / "household"
CONFIG = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    "tie_word_embeddings": True,
    "initializer_range": 0.2,  # so that attention is far from even
}
QUESTION, ANSWER = "Clean a muddy pair of boots.", "Let the mud dry, then brush it off outside."
GIVEN = f" it.\nSolution: {ANSWER}\n\nGoal:"  # what a teacher may write after the beginning of a goal


@pytest.fixture
def scripts(monkeypatch):
    """The modules teacher and write, as when the script is run."""
    monkeypatch.syspath_prepend(HOUSEHOLD)
    yield importlib.import_module("teacher"), importlib.import_module("write")
    for name in ("teacher", "write"):
        del sys.modules[name]


@pytest.fixture
def write(scripts):
    return scripts[1]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The folder of a random Llama with a tokenizer made of questions.toml."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train([str(HOUSEHOLD / "questions.toml")], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    LlamaForCausalLM(LlamaConfig(vocab_size=500, **CONFIG)).save_pretrained(folder)
    return folder


def run(write, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["write.py", *map(str, arguments)])
    write.main()


def refusal(write, monkeypatch, capsys, *arguments) -> str:
    """The last line on standard error of a call that fails."""
    with pytest.raises(SystemExit) as ended:
        run(write, monkeypatch, *arguments)
    print(ended.value.code if isinstance(ended.value.code, str) else "", file=sys.stderr)
    assert ended.value.code not in (0, None)
    return capsys.readouterr().err.strip().splitlines()[-1]


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_teacher_gives_the_logits_of_transformers(scripts):
    torch.manual_seed(1)
    network = LlamaForCausalLM(LlamaConfig(vocab_size=99, **CONFIG)).eval()
    lengths, width, more = (20, 13, 1), 20, 5
    rows_ = [torch.randint(99, (length + more,)) for length in lengths]
    pad_B = torch.tensor([width - length for length in lengths])
    ids_BT = torch.stack([torch.nn.functional.pad(row, (width + more - len(row), 0)) for row in rows_])
    teacher = scripts[0].Teacher(network, len(rows_), width + more)
    for start, end in [(0, 8), (8, width), *((place, place + 1) for place in range(width, width + more))]:
        logits_BV = teacher.step(ids_BT[:, start:end], start, pad_B)
        for row, pad, logits_V in zip(rows_, pad_B.tolist(), logits_BV, strict=True):
            if end > pad:
                with torch.no_grad():
                    wanted_V = network(row[None, : end - pad]).logits[0, -1]
                assert (logits_V - wanted_V).abs().max() < 1e-4


def test_a_prompt_shows_four_examples_of_its_form_and_depends_on_the_seed(write):
    prompts = list(islice(write.beginnings(1), 200))
    for shown, _, between in prompts:
        assert (shown.count(between), shown.count("\n\n")) == (4, 4)
        assert shown.endswith("\n\nGoal:" if between == "\nSolution:" else "\n\nQuestion:")
    assert {between for _, _, between in prompts} == {"\nSolution:", "\nAnswer:"}
    assert prompts == list(islice(write.beginnings(1), 200)) != list(islice(write.beginnings(2), 200))


def test_only_likely_tokens_are_chosen(write):
    logits_BV = torch.tensor([[0.0, 3.0, 3.0, -9.0]]).expand(200, 4)
    assert set(write.choose(logits_BV).tolist()) == {1, 2}


@pytest.mark.parametrize(
    ("question", "answer", "kept"),
    [
        (QUESTION, ANSWER, True),
        (QUESTION, "Brush the mud off.", False),  # too few words
        (QUESTION, "Let the mud dry, then brush it", False),  # no end
        (QUESTION, "Let the mud dry, and then let the mud dry again.", False),  # the same three words twice
        (QUESTION, "Let the mud dry.\nThen brush it off outside.", False),
        (QUESTION, "See http://boots.com for how this is done.", False),
        (QUESTION, "Let it dry.<|im_end|> Brush it off outside.", False),
        (f"Clean {'very ' * 40}muddy boots.", ANSWER, False),
        (QUESTION, "Clean the pair of muddy boots outside.", False),  # 2 of 7 words are not in the question
        (QUESTION, "Clean a pair of boots outside, with warm water.", False),  # 4 of 9
        (QUESTION, "Clean a pair of boots outside, with some warm water.", False),  # 5 of 10, which is half
        (QUESTION, "Clean a pair of boots outside, with some nice warm water.", True),  # 6 of 11
    ],
)
def test_an_answer_is_one_line_that_ends_and_mostly_says_new_words(write, question, answer, kept):
    assert write.sensible(question, answer) == kept


def test_a_continuation_ends_the_question_and_answers_it(write):
    texts = [
        (" Clean a muddy", "\nSolution:", f" pair of boots.\nSolution: {ANSWER}\n\nGoal: Wash"),
        (" Clean a muddy", "\nSolution:", f" pair of boots.\nSolution: {ANSWER}"),  # cut off
        (" Clean a muddy", "\nSolution:", f" pair of boots.\nAnswer: {ANSWER}\n\n"),  # in the other form
        ("", "\nAnswer:", f" Clean it.\nAnswer: {ANSWER}\n\n"),
    ]
    assert list(write.pairs_of(texts)) == [(QUESTION, ANSWER), ("Clean it.", ANSWER)]


def test_runs_of_words_are_blind_to_case_and_marks(write):
    runs = write.runs_of_words("One, two: THREE four (five) six seven; don't nine")
    first = ("one", "two", "three", "four", "five", "six", "seven", "don't")
    assert runs == {first, (*first[1:], "nine")}
    assert write.runs_of_words("too short") == set()


def test_a_tiny_model_writes_a_file_that_can_be_read(write, tiny, tmp_path, monkeypatch, capsys):
    out = tmp_path / "household.jsonl"
    run(write, monkeypatch, tiny, "--out", out, "--minutes", 0.001, "--batch", 2)
    assert capsys.readouterr().out == f"{len(rows(out))} documents in {out}\n"


def test_documents_are_new_and_apart_from_the_benchmarks(write, tiny, tmp_path, monkeypatch):
    """Every third is a text; a pair that was written before, or stands in a benchmark, is left out."""
    others = ["Soak them in cold water over one night.", "Wipe with warm vinegar and rinse twice.", "Ask a friend."]
    answers = [ANSWER, *others, "Rub some soft wax into all its old seams."]
    monkeypatch.setattr(
        write, "beginnings", lambda seed: iter([("Goal:", f" Clean {n}", "\nSolution:") for n in (1, 2, 3, 4, 5)] * 2)
    )
    monkeypatch.setattr(
        write.Writer, "continued", lambda self, prompts: [GIVEN.replace(ANSWER, answer) for answer in answers]
    )
    benchmark = tmp_path / "b.jsonl"
    benchmark.write_text(json.dumps({"query": "Dirt?", "choices": ["Soap.", f"Now {others[0]}"]}) + "\n")
    first = next(write.documents(write.Writer(tiny), 1, 5, write.benchmark_runs([benchmark])))
    origin = {"source": "household", "license": "Apache-2.0"}
    assert first[0] == {"text": f"Question: Clean 1 it.\nAnswer: {ANSWER}", **origin}
    turns = [[message["content"] for message in document["messages"]] for document in first[1:]]
    assert turns == [["Clean 3 it.", others[1]], ["Clean 5 it.", answers[-1]]]
    assert first[1]["messages"][0]["role"] == "user"
    both = write.documents(write.Writer(tiny), 1, 5, set())
    assert (len(next(both)), next(both)) == (4, [])


def test_ctrl_c_keeps_what_is_written(write, tiny, tmp_path, monkeypatch, capsys):
    batches = iter([[GIVEN, GIVEN]])

    def continued(self, prompts):
        for batch in batches:
            return batch
        raise KeyboardInterrupt

    monkeypatch.setattr(write.Writer, "continued", continued)
    monkeypatch.setattr(
        write, "beginnings", lambda seed: iter([("Goal:", f" Clean {n}", "\nSolution:") for n in "1234"])
    )
    out = tmp_path / "household.jsonl"
    run(write, monkeypatch, tiny, "--out", out, "--batch", 2)
    assert len(rows(out)) == 2
    assert capsys.readouterr().out == f"2 documents in {out}\n"


def test_too_large_a_batch_is_an_error_in_words(write, tiny, tmp_path, monkeypatch, capsys):
    def continued(self, prompts):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(write.Writer, "continued", continued)
    said = refusal(write, monkeypatch, capsys, tiny, "--out", tmp_path / "household.jsonl", "--batch", 9)
    assert said == "--batch 9 needs more memory than there is: choose a smaller one"


def test_bad_input_is_refused_in_one_sentence(write, tiny, tmp_path, monkeypatch, capsys):
    out, other = tmp_path / "household.jsonl", tmp_path / "other"
    refused = partial(refusal, write, monkeypatch, capsys)
    assert refused(tmp_path / "none", "--out", out).startswith(f"{tmp_path / 'none'} is no model that can be read: ")
    shutil.copytree(tiny, other)
    scaled = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    LlamaConfig(vocab_size=500, **{**CONFIG, "rope_parameters": scaled}).save_pretrained(other)
    assert refused(other, "--out", out) == (
        f"{other} cannot be the teacher: only a Llama with unscaled rotary positions is computed"
    )
    (other / "model.safetensors").write_bytes(b"\x09" * 9)
    assert refused(other, "--out", out).startswith(f"{other} is no model that can be read: ")
    assert refused(tiny, "--out", out, "--apart-from", tmp_path / "none.jsonl") == (
        f"{tmp_path / 'none.jsonl'} cannot be read: No such file or directory"
    )
    config = tiny / "config.json"
    assert refused(tiny, "--out", out, "--apart-from", config) == (
        f"{config} is no benchmark: its lines need a query and choices, in JSON"
    )
    assert refused(tiny, "--out", out, "--batch", 0).endswith("--batch is 0, but must be at least 1")
    assert not out.exists()
    out.write_text("kept")
    assert refused(tiny, "--out", out).endswith(f"{out} exists already: choose another name or remove it first")
    assert out.read_text() == "kept"
    missing = tmp_path / "none" / "household.jsonl"
    assert refused(tiny, "--out", missing) == f"{missing} cannot be written: No such file or directory"
