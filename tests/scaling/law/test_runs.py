"""Tables of runs are read with their units, and what is left out or guessed is said."""

import numpy as np
import pytest

from mobilemoe.errors import DataError, UsageError
from mobilemoe.scaling import read_runs
from refusals import refusal

GOOD = "id,loss,n_active,tokens,experts,granularity,shared\na,2.5,3e8,1e11,8,4,1\nb,2.6,2e8,1e11,1,4,1\n"


@pytest.fixture
def table(tmp_path):
    def write(text: str | bytes, columns=None):
        path = tmp_path / "runs.csv"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return read_runs(path, columns)

    write.path = tmp_path / "runs.csv"
    return write


def test_counts_and_billions_mean_the_same(table):
    counts, billions = table(GOOD), table(GOOD.replace("e8", "e-1").replace("1e11", "100"))
    for name in ("n_active", "tokens"):
        np.testing.assert_allclose(getattr(counts.points, name), getattr(billions.points, name))
    np.testing.assert_allclose(counts.points.n_active, [0.3, 0.2])
    assert counts.notes == ()
    assert sum("billions" in note for note in billions.notes) == 2
    np.testing.assert_allclose(counts.flops, [1.8e20, 1.2e20])


def test_a_dense_run_has_nothing_to_cut_or_to_share(table):
    points = table(GOOD).points
    assert (points.granularity.tolist(), points.shared.tolist()) == ([4, 1], [1, 0])
    no_experts = table("loss,n_active,tokens,granularity\n2,1,1,4\n").points
    assert (no_experts.experts.tolist(), no_experts.granularity.tolist()) == ([1], [4])


def test_mixed_units_are_refused(table):
    text = GOOD + "c,2.4,0.5,1e11,8,1,0\n"
    assert "mixes plain counts and billions" in refusal(lambda: table(text), DataError)


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators_a_mark_and_blank_lines_are_read(table, separator):
    text = "\ufeff" + GOOD.replace(",", separator).replace("\n", "\r\n") + "\r\n"
    assert table(text).ids == ("a", "b")


def test_rows_without_a_usable_number_are_left_out_and_told(table):
    rows = ["c,nan,1e8,1e9,1,1,0", "d,-2,1e8,1e9,1,1,0", "e,2,,1e9,1,1,0", "f,2,1e8,oops,1,1,0", "g,2,1e8,1e9,0,1,0"]
    runs = table(GOOD + "\n".join(rows) + "\nh,2\n")
    assert runs.ids == ("a", "b")
    told = " ".join(runs.notes)
    assert "2 runs left out: loss" in told
    assert "1 run left out: n_active" in told
    assert "1 run left out: tokens" in told
    assert "1 run left out: experts" in told
    assert "line 4: 'nan', line 5: '-2'" in told
    assert "1 run left out: fewer cells than the 7 of the header (line 9: 2)" in told


def test_doubles_are_dropped_and_different_runs_of_one_name_kept(table):
    runs = table(GOOD + "a,2.4,3e8,1e11,8,4,1\na,2.7,1e8,1e11,8,4,1\n")
    assert runs.ids == ("b", "a", "a")
    assert runs.loss.tolist() == [2.6, 2.4, 2.7]
    assert any("later line" in note for note in runs.notes)
    assert any("several different runs" in note for note in runs.notes)


def test_a_row_that_stands_twice_without_an_id_counts_once(table):
    runs = table(",loss,n_active,tokens,seed\n0,2.5,1,1,0\n1,2.5,1,1,0\n2,2.5,1,1,1\n3,2.4,1,2,0\n")
    assert runs.loss.tolist() == [2.5, 2.5, 2.4]
    assert any("the same row comes again in a later line (line 2)" in note for note in runs.notes)


def test_a_row_that_stands_twice_in_other_digits_counts_once(table):
    runs = table("loss,n_active,tokens,seed\n2.5,5e7,1e9,a\n2.50,50000000,1000000000,a\n2.5,5e7,1e9,b\n")
    assert runs.loss.tolist() == [2.5, 2.5]
    assert any("the same row comes again in a later line (line 2)" in note for note in runs.notes)


def test_fewer_tokens_than_a_count_begins_with_are_known_by_their_compute(table):
    runs = table("loss,n_active,tokens,flops\n9.5,560000,8320,2.8e10\n8.0,560000,32256,1.1e11\n")
    np.testing.assert_allclose(runs.points.tokens, [8.32e-6, 32.256e-6])
    assert runs.notes == ()


def test_trials_of_other_learning_rates_are_left_out_and_told(table):
    runs = table("id,loss,n_active,tokens,rate\na,2.5,3e8,1e11,1\nb,2.6,2e8,1e11,0.5\nc,2.6,2e8,1e11,2\n")
    assert runs.ids == ("a",)
    (note,) = runs.notes
    assert "2 runs left out: at another learning rate than the sweep's rule, since rate is not 1" in note
    assert "line 3: '0.5', line 4: '2'" in note


def test_a_column_rate_that_is_no_factor_leaves_no_run_out_and_that_is_said(table):
    runs = table("loss,n_active,tokens,rate\n2.5,3e8,1e11,3e-4\n2.6,2e8,1e11,1e-3\n")
    assert len(runs) == 2
    assert any("rate is not used" in note for note in runs.notes)
    blank = table("loss,n_active,tokens,rate\n2.5,3e8,1e11,1\n2.6,2e8,1e11,\n")
    assert len(blank) == 2


def test_flops_that_are_no_training_compute_change_nothing_and_that_is_said(table):
    runs = table("loss,n_active,tokens,flops\n2.5,3e8,100,6e8\n2.6,2e8,200,4e8\n")
    assert runs.points.tokens.tolist() == [100, 200]
    assert any("flops is not used" in note for note in runs.notes)


def test_runs_that_repeat_data_are_marked(table):
    head = "loss,n_active,tokens,"
    assert table(head + "repeated\n2,1,1,yes\n2,1,2,0\n2,1,3,\n").repeated.tolist() == [True, False, False]
    for yes, no in (("TRUE", "FALSE"), ("1.0", "0.0"), ("t", "f"), ("1", "nan")):
        assert table(f"{head}repeated\n2,1,1,{yes}\n2.1,1,1,{no}\n").repeated.tolist() == [True, False]
        assert table(f"{head}shared\n2,1,1,{yes}\n2,1,2,0\n").points.shared.tolist() == [1, 0]
    assert "line 3: shared is '2'" in refusal(lambda: table(head + "shared\n2,1,1,1\n2,1,1,2\n"), DataError)
    assert table(head + "epochs\n2,1,1,1.5\n2,1,1,1\n").repeated.tolist() == [True, False]
    assert table(head + "epoch_tokens\n2,1,9,5\n2,1,1,5\n").repeated.tolist() == [True, False]
    assert "must be 0 or 1" in refusal(lambda: table(head + "repeated\n2,1,1,maybe\n"), DataError)


def test_what_is_missing_is_derived_from_the_compute_and_said(table):
    runs = table("Model Size,FLOP,L\n1e9,6e19,2\n", {"n_active": "Model Size", "flops": "FLOP", "loss": "L"})
    assert runs.points.tokens.tolist() == [10]
    assert any("D = C / (6 N)" in note for note in runs.notes)
    assert table("tokens,flops,loss\n1e10,6e19,2\n").points.n_active.tolist() == [1]


def test_experts_are_taken_from_the_sizes_only_where_there_is_no_column(table):
    text = "loss,n_active,tokens,n_total\n2,1e8,1e9,5e8\n"
    runs = table(text)
    assert runs.points.experts.tolist() == [5]
    assert any("n_total / n_active" in note for note in runs.notes)
    assert table(text.replace("\n2", ",experts\n2").replace("5e8\n", "5e8,8\n")).points.experts.tolist() == [8]


def test_which_parameters_are_counted_is_known_or_chosen(table):
    both = "loss,tokens,n_active,n_active_no_embedding\n2,1,3,2\n"
    assert (table(both).points.n_active[0], table(both).counts_embedding) == (3, True)
    for columns in ({"n_active": "n_active_no_embedding"}, {"n_active_no_embedding": "n_active_no_embedding"}):
        chosen = table(both, columns)
        assert (chosen.points.n_active[0], chosen.counts_embedding) == (2, False)
    assert table(GOOD).counts_embedding is None
    assert table("loss,tokens,n_active_no_embedding\n2,1,2\n").counts_embedding is False


def test_a_missing_column_is_answered_with_those_that_there_are(table):
    for text, columns, words in [
        ("a,b\n1,2\n", {}, ["'loss'", "a, b", "--columns loss=NAME"]),
        ("loss,tokens\n1,2\n", {}, ["'n_active'"]),
        ("loss,n_active\n1,2\n", {}, ["'tokens'"]),
        (GOOD, {"loss": "Loss"}, ["'Loss'", "n_active"]),
        (GOOD, {"colour": "loss"}, ["'colour'", "n_active"]),
    ]:
        sentence = refusal(lambda text=text, columns=columns: table(text, columns), UsageError)
        assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize(
    "text",
    ["", "loss,n_active,tokens\n", b"\xff\xfe\x00", "loss,loss,n_active\n1,2,3\n", "loss,n_active,tokens\nx,1,1\n"],
    ids=repr,
)
def test_what_is_no_table_of_runs_is_refused(table, text):
    assert "runs.csv" in refusal(lambda: table(text), DataError)


def test_losses_that_cannot_be_nats_are_questioned(table):
    assert any("nats" in note for note in table("loss,n_active,tokens\n30,1,1\n").notes)


SWEEP = (
    "id,block,loss,n_active,tokens,held_out\n"
    "d1-dense,trunks+seeds,2.5,3e8,1e11,0\nd1-e8,trunks,2.4,3e8,1e11,1\nd1-e8g1,granularity,2.45,3e8,2e11,\n"
)


def test_runs_that_a_table_registers_to_be_predicted_are_marked(table):
    assert table(SWEEP).held_out.tolist() == [False, True, False]
    assert table(GOOD).held_out is None
    assert table(SWEEP).at([1, 2]).held_out.tolist() == [True, False]
    assert "held_out is 'often'" in refusal(lambda: table(SWEEP.replace(",1\n", ",often\n")), DataError)


def test_runs_are_picked_by_id_and_by_block(table):
    table(SWEEP)  # writes it

    def picked(*names):
        return read_runs(table.path, only=names)

    assert picked("trunks").ids == ("d1-dense", "d1-e8")
    assert picked("seeds", "*g1").ids == ("d1-dense", "d1-e8g1")
    assert any("2 of 3 runs" in note for note in picked("trunks").notes)
    assert "'trunk'" in refusal(lambda: picked("trunk"))
