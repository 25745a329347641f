"""The examples in the README of the official clients, as it is installed with them, run unchanged.

They are told where the server is by the environment alone. The server answers to the names of the models in them.
"""

import ast
import asyncio
import inspect
import re
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import metadata

import anthropic
import openai
import pytest

from servers import KEY, running

# The others are about services, credentials or programs that are not of this server's interface.
ABOUT_OTHERS = re.compile(
    r"workload_identity|AZURE|azure|[Bb]edrock|realtime|image|audio|files\.create|fine_tuning|webhooks|"
    r"my_field|/foo|proxy|ssl|DefaultHttpx2Client\(\.\.\.\)|admin_api_key|base_url="
)


def examples(package: str) -> list[str]:
    text = metadata(package).get_payload()
    return re.findall(r"^```(?:python|py)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


README = examples("openai")
ABOUT_TEXT = [code for code in README if not ABOUT_OTHERS.search(code)]


def in_a_thread(function, *arguments):
    """Calls it where no event loop runs: tests of the page leave one running in the main thread."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *arguments).result()


def run(code: str, client: object | None = None) -> dict:
    """Runs an example as it is; one that is a part of a program gets a `client`, and may await at its top level."""
    names = {"__name__": "example", "client": client}
    compiled = compile(code, "README", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)

    def call() -> None:
        result = eval(compiled, names)
        if inspect.iscoroutine(result):
            asyncio.run(result)

    in_a_thread(call)
    return names


@pytest.fixture(scope="module")
def server():
    models = {name for code in [*ABOUT_TEXT, *examples("anthropic")] for name in re.findall(r'model="([^"]+)"', code)}
    assert len(models) >= 2
    with running(*(option for name in sorted(models) for option in ("--alias", name))) as server:
        yield server


@pytest.fixture(autouse=True)
def environment(server, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.root}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.root)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)


def test_the_readme_still_has_its_examples():
    assert len(README) >= 40
    assert len(ABOUT_TEXT) >= 10
    kinds = ["responses.create", "chat.completions.create", "stream=True", "AsyncOpenAI", "with_raw_response"]
    for kind in [*kinds, "with_streaming_response", "json_object", "max_retries", "timeout"]:
        assert any(kind in code for code in ABOUT_TEXT), kind


@pytest.mark.parametrize("code", ABOUT_TEXT, ids=lambda code: re.sub(r"\W+", "_", code)[:60])
def test_an_example_of_openai_s_client_runs_unchanged(code, capsys):
    client = openai.AsyncOpenAI() if "await" in code else openai.OpenAI()
    names = run(code, client)
    made = names.get("response") or names.get("completion")
    if isinstance(made, openai.types.responses.Response):
        assert made.status in ("completed", "incomplete")
        assert made.output_text
    if "print(" in code and "except" not in code:
        assert capsys.readouterr().out.strip()


def test_an_example_about_errors_meets_one(capsys):
    [code] = [code for code in README if "except openai.APIStatusError as e:" in code]
    run(code)
    assert "404" in capsys.readouterr().out


def test_the_example_of_anthropic_s_client_runs_unchanged(capsys):
    [code] = examples("anthropic")
    message = run(code)["message"]
    assert isinstance(message, anthropic.types.Message)
    assert "TextBlock" in capsys.readouterr().out


def test_the_models_are_listed_page_by_page():
    """As the README shows it for other lists."""
    client = openai.OpenAI()
    first_page = client.models.list()
    assert not first_page.has_next_page()
    assert "nano" in [model.id for model in first_page.data] == [model.id for model in client.models.list()]

    async def listed() -> list[str]:
        async with openai.AsyncOpenAI() as client:
            return [model.id async for model in client.models.list()]

    assert in_a_thread(asyncio.run, listed()) == [model.id for model in first_page.data]
    described = anthropic.Anthropic().models.list()
    assert [model.display_name for model in described] == [model.id for model in first_page.data]
