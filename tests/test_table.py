"""Tables are read as spreadsheets and people write them, or refused with the line, and never silently misread."""

import numpy as np
import pytest

from mobilemoe.errors import DataError, TrainError
from mobilemoe.sweep.table import add_row, read_rows
from mobilemoe.table import read_table
from refusals import refusal

ROWS = "name,loss,tokens\nMüller,3.91,1000000000\nb,2.5,3000000000\n"


@pytest.fixture
def table(tmp_path):
    def read(data: str | bytes):
        path = tmp_path / "runs.csv"
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return read_table(path)

    return read


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_separators_and_line_ends_of_spreadsheets_are_read(table, encoding, separator, end):
    read = table(ROWS.replace(",", separator).replace("\n", end).encode(encoding))
    assert read.header == ("name", "loss", "tokens")
    assert read.texts("name") == ["Müller", "b"]
    assert read.numbers(["tokens"])["tokens"].tolist() == [1e9, 3e9]
    assert any("Windows-1252" in note for note in read.notes) == (encoding == "cp1252")


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "SEP=;", "sep=;;;"])
def test_excels_first_line_names_the_separator(table, first):
    read = table(f"{first}\r\nloss;note, of mine\r\n3,91;a\r\n")
    assert read.header == ("loss", "note, of mine")
    assert (read.rows[0].line, read.numbers(["loss"])["loss"].tolist()) == (3, [3.91])


def test_lines_are_counted_as_an_editor_counts_them(table):
    read = table('\n\nloss,note\n\n1,"two\nlines"\n\n2,x\n3,"a\r\nb"\n4,y')
    assert [row.line for row in read.rows] == [5, 8, 9, 11]


def test_a_row_with_more_cells_than_the_header_is_refused_and_a_shorter_one_is_marked(table):
    sentence = refusal(lambda: table("loss,tokens\n1,100\n2,1,500\n"), DataError)
    assert "line 3, has 3 cells where the header has 2" in sentence
    read = table("loss,tokens,\n1,100,,,\n2\n3,4,\n")  # empty cells behind the last are a spreadsheet's
    assert [(row.cells, row.lacks) for row in read.rows] == [(("1", "100"), 0), (("2", ""), 1), (("3", "4"), 0)]


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (["3.91", "1e-3", "1,000", "12,345,678.5"], [3.91, 1e-3, 1000, 12345678.5]),
        (["3,91", "1e-3", "1.000", "12.345.678,5"], [3.91, 1e-3, 1000, 12345678.5]),
        (["1,000,000", "10", "1,000"], [1e6, 10, 1000]),
        (["1.000.000", "10", "1.000"], [1e6, 10, 1000]),
        (["3.910", "2.500"], [3.91, 2.5]),  # what a program prints
        (["0,123"], [0.123]),
        (["1234,567"], [1234.567]),
        (["1,500e9"], [1.5e9]),
        (["1 000 000", "1\u202f000", "1'000", "1\u2019000", "1_000"], [1e6, 1e3, 1e3, 1e3, 1e3]),
        (["", "x", "nan", "3.9%", "1.5.5", "1,5,5", "--1", "1,00,000"], [np.nan] * 8),
        (["inf", "-2"], [np.inf, -2]),
    ],
    ids=repr,
)
def test_decimal_signs_and_thousands_are_told_apart(table, cells, numbers):
    read = table("a;b\n" + "".join(f"{cell};x\n" for cell in cells))
    np.testing.assert_array_equal(read.numbers(["a"])["a"], numbers)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("3.91;1\n2,5;1\n", ["two decimal signs", "'3.91' in line 2", "'2,5' in line 3"]),
        ("3.91;1.000.000\n", ["between thousands", "'3.91' in line 2", "'1.000.000' in line 2"]),
        ("3.910;1.000.000\n", ["a is '3.910' in line 2", "3.91 or 3910"]),
        ("1;1,500\n", ["b is '1,500' in line 2", "1.5 or 1500"]),
    ],
)
def test_numbers_that_can_be_read_in_two_ways_are_refused(table, rows, words):
    sentence = refusal(lambda: table("a;b\n" + rows).numbers(["a", "b"]), DataError)
    assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"PK\x03\x04rest", "save it as CSV"),
        (b"\x1f\x8brest", "unpack"),
        (b"PAR1rest", "Parquet"),
        (b"a,b\n1,\x002\n", "line 2"),
        (b'a,b\n1,2\n3,"4\n5,6\n', "line 3"),
        (b'a,b\n1,2\n3,"4"x\n', "line 3"),
        (b"a,a\n1,2\n", "several columns"),
        (b"a,b\n\n", "no rows"),
        (b"a,b\n1," + b"x" * 200_000 + b"\n", "line 2"),
        (b"x" * 200_000 + b"\n", "line 1"),
        ("a,b\n1,2\n".encode("utf-16")[:-1], "UTF-16"),
    ],
    ids=["zip", "gzip", "parquet", "nul", "open quote", "behind quote", "twice", "empty", "long", "head", "cut"],
)
def test_what_is_no_table_is_refused_with_its_name_and_line(table, data, word):
    sentence = refusal(lambda: table(data), DataError)
    assert "runs.csv" in sentence
    assert word in sentence


SWEEP = "id,block,rate,device,key\nd32,size,0.5,Prüfstand,abc\n"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("german", [False, True])
def test_a_sweep_reads_its_table_as_fit_does_and_writes_it_as_its_own(tmp_path, encoding, german):
    path = tmp_path / "runs.csv"
    path.write_bytes((SWEEP.replace(",", ";").replace("0.5", "0,5") if german else SWEEP).encode(encoding))
    row = {"id": "d32", "block": "size", "rate": "0.5", "device": "Prüfstand", "key": "abc"}
    assert read_rows(path) == [row]
    add_row(path, row | {"id": "d64"})
    assert path.read_text("utf-8") == SWEEP + "d64,size,0.5,Prüfstand,abc\n"


@pytest.mark.parametrize("text", ["a,b\n1,2\n", SWEEP + "d64,size\n", SWEEP + "a,b,c,d,e,f\n", "\x00"], ids=repr)
def test_what_is_no_table_of_a_sweep_is_refused_and_stays(tmp_path, text):
    path = tmp_path / "runs.csv"
    path.write_text(text)
    assert "runs.csv" in refusal(lambda: read_rows(path), TrainError)
    assert "runs.csv" in refusal(lambda: add_row(path, {"id": "d", "key": "k"}), TrainError)
    assert path.read_text() == text


@pytest.mark.parametrize("above", ["My runs of 2024", "My runs,,", "# made by hand"])
def test_what_stands_above_the_header_is_named(table, above):
    with pytest.raises(DataError, match=r"line 2, has 3 cells, but line 1 has only .*: remove what stands above"):
        table(f"{above}\na,b,c\n1,2,3\n".encode())
