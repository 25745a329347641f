"""The bundled nano model is what its card says."""

import json
import re
from pathlib import Path

import pytest

import mobilemoe
from mobilemoe.checkpoint import Checkpoint
from mobilemoe.evaluate.compare.bits_per_byte import score_file
from mobilemoe.hub import ASSETS
from mobilemoe.load import Model
from mobilemoe.presets import PRESETS
from places import HELDOUT

NANO = ASSETS / "nano"


@pytest.fixture(scope="module")
def nano() -> Model:
    return mobilemoe.load("nano")


def test_it_fits_into_32_megabytes_with_its_tokenizer() -> None:
    assert sum(path.stat().st_size for path in NANO.iterdir()) <= 32_000_000


def test_it_is_the_nano_preset_in_int4_grouped_along_the_input() -> None:
    with Checkpoint.open(NANO) as checkpoint:
        config = checkpoint.config
        assert all(checkpoint.verify().values())
    assert config.expert_group_axis == "in"
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_local_experts", "num_experts_per_tok"):
        assert getattr(config, name) == getattr(PRESETS["nano"], name)


def test_config_names_the_tokenizers_control_ids(nano: Model) -> None:
    tokenizer, config = nano.tokenizer, nano.config
    assert config.bos_token_id == tokenizer.bos_id
    assert config.eot_token_id == tokenizer.eot_id
    assert config.header_start_token_id == tokenizer.header_start_id
    assert config.header_end_token_id == tokenizer.header_end_id
    assert set(config.eos_token_id) == set(tokenizer.stop_ids)


def card() -> dict[str, float]:
    """Held-out bits per byte by domain, as the model card says."""
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) \|$", (NANO / "README.md").read_text(), re.MULTILINE)
    assert {name for name, _ in rows} == {"books", "textbooks", "code", "specs", "docs", "chat", "all"}
    return {name: float(bits) for name, bits in rows}


def test_held_out_bits_per_byte_are_those_of_the_model_card(nano: Model) -> None:
    """All of the text, with the engine in int8, which changed them by .0005 at most."""
    measured = {name: score.bits_per_byte for name, score in score_file(nano, HELDOUT, window=512).items()}
    assert measured == pytest.approx(card(), abs=0.002)


@pytest.mark.slow
def test_held_out_bits_per_byte_of_the_exact_model_are_those_of_the_model_card() -> None:
    exact = mobilemoe.load("nano", backend="torch")
    measured = {name: score.bits_per_byte for name, score in score_file(exact, HELDOUT, window=512).items()}
    assert measured == pytest.approx(card(), abs=0.002)


def test_int8_activations_cost_at_most_half_a_percent_of_bits(nano: Model, tmp_path: Path) -> None:
    lines = HELDOUT.read_text().splitlines(keepends=True)[::12]  # some of every domain
    (tmp_path / "part.jsonl").write_text("".join(lines))
    exact, native = (
        score_file(model, tmp_path / "part.jsonl", window=512)["all"]
        for model in (mobilemoe.load("nano", backend="torch"), nano)
    )
    assert native.tokens > 10_000
    assert native.bits_per_byte == pytest.approx(exact.bits_per_byte, rel=0.005)


def test_it_has_learnt_english(nano: Model) -> None:
    """A word that must follow is far likelier than one that cannot."""
    ids = nano.encode("He opened the door and walked into the")
    logits_V = nano.logits(ids)[-1]
    room, of = (nano.tokenizer.encode(word)[0] for word in (" room", " of"))
    assert logits_V[room] > logits_V[of] + 2


def test_it_writes_text(nano: Model) -> None:
    assert len(nano.generate("The old man", max_new_tokens=16).split()) >= 5


@pytest.mark.parametrize(
    "turns",
    [
        (("Hello", "nano"), ("What can you do?", "books"), ("Thanks!", "welcome")),
        (("Who wrote Frankenstein?", "Shelley"), ("and Jane Eyre?", "Bronte")),
        (
            ("My name is Ana.", "Ana"),
            ("I live in Oslo and I have a dog called Rex.", "Rex"),
            ("What is my name?", "Your name is Ana."),
            ("What is my dog called?", "Your dog's name is Rex."),
        ),
        (("What is 12 plus 30?", "12 plus 30 is 42."), ("What is 47 plus 38?", "47 plus 38 is 85.")),
        (("What is 90 minus 45?", "90 minus 45 is 45."), ("What is 7 times 8?", "7 times 8 is 56.")),
        (("What is 4821 times 377?", "Please use a calculator"),),
        (("Ana is a nurse and lives in Porto. Where does Ana live?", "Ana lives in Porto."),),
        (("Write an email to Bob.", "I cannot reach Bob"), ("Are you a human?", "No")),
    ],
)
def test_it_holds_a_conversation_about_what_it_was_taught_and_stops(turns, nano: Model) -> None:
    messages: list[dict[str, str]] = []
    for said, expected in turns:
        messages.append({"role": "user", "content": said})
        answer = nano.generate(messages=messages, max_new_tokens=100)
        assert expected in answer
        assert len(nano.encode(answer)) < 60  # it ended by itself
        messages.append({"role": "assistant", "content": answer})


def test_heldout_text_covers_every_domain_and_is_small() -> None:
    assert HELDOUT.stat().st_size <= 500_000
    domains = {json.loads(line)["domain"] for line in HELDOUT.read_text().splitlines()}
    assert domains == {"books", "textbooks", "code", "specs", "docs", "chat"}
