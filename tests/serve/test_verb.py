"""What `mobilemoe serve` refuses before it serves anything."""

import socket
import subprocess
import sys

import pytest


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("MOBILEMOE_API_KEY", raising=False)


def test_a_name_that_is_no_host_is_one_line(fails):
    assert "cannot be used" in fails(2, "serve", "nano", "--host", "a..b", "--api-key", "x")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.invalid"])
def test_a_public_address_needs_a_key_or_a_word(fails, host):
    assert "--no-api-key" in fails(2, "serve", "nano", "--host", host)


def test_a_key_and_no_key_exclude_each_other(fails):
    assert "exclude" in fails(2, "serve", "nano", "--api-key", "x", "--no-api-key")


@pytest.mark.parametrize("option", ["--drain-seconds", "--request-seconds"])
def test_a_time_that_is_no_number_is_one_line(fails, option):
    assert option in fails(2, "serve", "nano", option, "nan")


def test_a_port_in_use_is_one_line(fails):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} of 127.0.0.1 cannot be used" in fails(2, "serve", "nano", "--port", port)


def test_an_address_of_another_machine_is_one_line(fails):
    assert "192.0.2.1" in fails(2, "serve", "nano", "--host", "192.0.2.1", "--port", "0", "--api-key", "x")


def test_a_model_that_is_not_there_is_one_line(tmp_path):
    command = [sys.executable, "-m", "mobilemoe", "serve", str(tmp_path / "nowhere"), "--port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert ended.stderr.startswith("mobilemoe: ")


def test_without_the_extra_the_verb_names_it(fails, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("mobilemoe.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "mobilemoe[serve]" in fails(1, "serve", "nano")
