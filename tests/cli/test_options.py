"""Options that several verbs share are said once, and each verb gets all of them."""

from dataclasses import dataclass, fields
from typing import Annotated

import typer
from typer.testing import CliRunner

from mobilemoe.cli.options import SamplingOptions, grouped
from mobilemoe.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class Sizes:
    width: Annotated[int, typer.Option(help="How wide.")] = 3
    long: Annotated[str | None, typer.Option("--length", help="How long.")] = None


def test_a_group_becomes_one_option_for_each_field_and_arrives_whole():
    heard = []
    app = typer.Typer()

    @app.command()
    @grouped
    def verb(name: str, *, sizes: Sizes, loud: bool = False) -> None:
        heard.append((name, sizes, loud))

    for arguments in (["a"], ["b", "--width", "5", "--length", "x", "--loud"]):
        assert CliRunner().invoke(app, arguments).exit_code == 0
    assert heard == [("a", Sizes(), False), ("b", Sizes(width=5, long="x"), True)]
    assert CliRunner().invoke(app, ["a", "--width", "x"]).exit_code == 2


def test_the_options_of_run_and_chat_are_the_fields_of_sampling_with_the_same_defaults():
    rules = {entry.name: entry.default for entry in fields(Sampling) if entry.name != "logit_bias"}
    assert {entry.name: entry.default for entry in fields(SamplingOptions)} == rules
