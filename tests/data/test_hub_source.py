"""A data set of the Hugging Face Hub gives the documents that its files hold, or one sentence."""

import json

import pytest

from mobilemoe.data import retry
from mobilemoe.data.config import SourceConfig
from mobilemoe.data.mixture import open_source
from mobilemoe.data.sources import HubSource
from mobilemoe.errors import DataError

ROWS = [{"text": f"Document {i}: naïve", "source": f"book {i}"} for i in range(300)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch):
    monkeypatch.setattr(retry, "WAITS", (0.0, 0.0, 0.0))


def test_a_hub_dataset_streams_the_same_documents(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.jsonl").write_text(LINES)
    files = [str(tmp_path / f"{number}.jsonl") for number in range(3)]
    source = open_source(SourceConfig(name="a", weight=1, hub="json", data_files=files), tmp_path)
    assert len(source.shards) == 3
    assert [d.text for d in source.documents(2)] == [row["text"] for row in ROWS]
    assert source.fingerprint != HubSource("json", data_files=files[:2]).fingerprint


def test_a_hub_dataset_that_cannot_be_opened_or_read_is_an_error(tmp_path):
    with pytest.raises(DataError, match="cannot be opened"):
        HubSource("json", data_files=str(tmp_path / "missing.jsonl"))
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\n{"text": \n')
    with pytest.raises(DataError, match="cannot be read"):
        list(HubSource("json", data_files=str(tmp_path / "bad.jsonl")).documents(0))
