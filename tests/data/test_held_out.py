"""What is held out is the same on every machine, and no question is on both sides."""

from mobilemoe.data.sources import Document, is_held_out


def test_the_held_out_split_is_a_stable_fraction():
    documents = [Document("x", None, source=f"book {i}", key="k") for i in range(20_000)]
    held = [d.source for d in documents if is_held_out(d, 0.01)]
    assert 150 < len(held) < 250
    assert held[:2] == ["book 19", "book 146"]  # the same on every machine, or a checkpoint's validation text leaks
    assert not any(is_held_out(d, 0.0) for d in documents)


def test_another_answer_to_the_same_question_is_on_the_same_side():
    for number in range(300):
        asked = {"role": "user", "content": f"What is {number}?"}
        answers = [[asked, {"role": "assistant", "content": answer}] for answer in ("Odd.", "Even.")]
        sides = {is_held_out(Document(None, messages, "s", "k"), 0.5) for messages in answers}
        assert len(sides) == 1
