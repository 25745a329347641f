"""The model card tells what was measured, how sure it is, what was not measured, and how to repeat it."""

from dataclasses import replace

from mobilemoe.errors import UsageError
from mobilemoe.evaluate.report.card import command, model_card
from refusals import refusal
from report_results import FOURTEEN, results


def rows(card: str) -> dict[str, list[str]]:
    """The cells of every table row behind its first cell."""
    lines = [line.strip("|").split(" | ") for line in card.splitlines() if line.startswith("| ")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_the_card_has_the_models_facts():
    table = rows(model_card([results()]))
    assert table["parameters"] == ["29,000,000"]
    assert table["active for a token"] == ["9,876,543"]
    assert table["INT4 file"] == ["19.0 MB"]
    assert table["FLOPs per decoded token"] == ["0.02 G"]
    assert table["context"] == ["2,048 tokens"]
    assert table["measured speed"] == ["1.5 ms per token"]


def test_every_score_has_its_error_number_and_shots():
    nano = results()
    table = rows(model_card([nano]))
    row = nano.results["hellaswag"]
    score = f"{100 * row['acc_norm']:.1f} ± {100 * row['acc_norm_stderr']:.1f}"
    assert table["hellaswag"] == ["acc_norm", score, "2,000", "0", f"acc {100 * row['acc']:.1f} ± 1.0"]
    assert table["gsm8k"][3] == "5\\*"
    assert {*FOURTEEN} <= {*table}


def test_what_is_not_known_or_not_measured_is_said():
    nano = results(without=("drop", "mmlu"), limit=100, ms=None)
    text = model_card([replace(nano, model=nano.model | {"context": None})])
    table = rows(text)
    assert (table["context"], table["measured speed"]) == (["-"], ["-"])
    assert table["drop"] == ["there is no drop.jsonl"]
    assert "Only the first 100 examples" in text
    assert "1,234 requests" in text
    assert "56 answers" in text


def test_what_a_reader_must_know_of_a_score_is_in_the_card():
    nano = results()
    noted = replace(nano, results=nano.results | {"siqa": nano.results["siqa"] | {"note": "two choices"}})
    assert "- siqa: two choices" in model_card([noted])


def test_the_command_repeats_the_evaluation():
    assert command(results()) == "mobilemoe eval nano --suite foundation --backend native --activations int8"
    nano = results("my models/nano", limit=50, suite="piqa,boolq")
    gguf = replace(nano, engine=nano.engine | {"backend": "gguf", "activations": None})
    assert command(gguf) == "mobilemoe eval 'my models/nano' --suite piqa,boolq --limit 50 --backend gguf"
    assert command(gguf) in model_card([gguf])


def test_a_card_holds_several_suites_of_one_model_and_refuses_two_models():
    text = model_card([results(), results(suite="advanced")])
    assert "## Scores: foundation" in text
    assert "## Scores: advanced" in text
    assert text.count("## Model\n") == 1
    both = [results(), results("S")]
    assert "the results are of nano and S" in refusal(lambda: model_card(both), UsageError)


def test_names_cannot_break_the_tables():
    text = model_card([results("a|b\n# c <i> [x](y)", without=("drop",))])
    assert text.splitlines()[0] == "# a\\|b # c \\<i\\> \\[x\\](y)"
