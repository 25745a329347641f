"""Writes the manual page of the command, mobilemoe.1, from the verbs and options themselves.

`make man` writes build/man/mobilemoe.1; tools/build_wheels.py puts it into the wheels, as share/man/man1/mobilemoe.1.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import typer.main

from mobilemoe.cli.main import app

ROOT = Path(__file__).parent.parent
STATUS = "0: done. 1: failed, with a sentence that says why. 2: wrong usage. 130: interrupted."
FILES = {
    "~/.cache/mobilemoe": "Engine files and finished requests of evaluations (XDG_CACHE_HOME).",
    "~/.cache/huggingface/hub": "Models of the Hugging Face Hub (HF_HOME).",
}
ENVIRONMENT = {
    "HF_TOKEN": "The token for gated models of the Hub.",
    "HF_HUB_OFFLINE": "1: never ask the Hub.",
    "MOBILEMOE_API_KEY": "The key that serve asks of every request.",
    "MOBILEMOE_CACHE_BYTES": "What engine files and random models may take together; the default is 20e9.",
    "MOBILEMOE_ISA": "The instruction set to compute with, such as avx2, in place of the best one.",
}


def page() -> str:
    """The page in roff's man macros."""
    about = metadata("mobilemoe")
    lines = [f'.TH MOBILEMOE 1 "" "mobilemoe {about["Version"]}" "User Commands"', ".SH NAME"]
    lines += [
        f"mobilemoe \\- {_roff(about['Summary'])}",
        ".SH SYNOPSIS",
        ".B mobilemoe",
        r"\fIVERB\fR [\fIOPTION\fR]...",
    ]
    for name, command in verbs():
        lines += [f".SH {name.upper()}", f"\\fBmobilemoe {name}\\fR {_roff(usage(command))}"]
        for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
            lines += [".PP", _roff(" ".join(paragraph.split()))]
        for parameter in command.params:
            lines += [".TP", f"\\fB{_roff(called(parameter))}\\fR", _roff(_help(parameter))]
    for title, entries in {"ENVIRONMENT": ENVIRONMENT, "FILES": FILES}.items():
        lines.append(f".SH {title}")
        for name, text in entries.items():
            lines += [".TP", f"\\fB{_roff(name)}\\fR", _roff(text)]
    return "\n".join([*lines, ".SH EXIT STATUS", _roff(STATUS)]) + "\n"


def verbs() -> Iterator[tuple[str, Any]]:
    """Every verb, those of groups by both names, with its command of Typer."""
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        yield from [(name, command)] if inner is None else [(f"{name} {each}", inner[each]) for each in inner]


def usage(command: Any) -> str:
    """The names of the arguments, optional ones in brackets."""
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    return " ".join([_name(each) if each.required else f"[{_name(each)}]" for each in arguments] + ["[OPTION]..."])


def called(parameter: Any) -> str:
    """How a parameter is written: an argument's name, or an option with what follows it."""
    if parameter.param_type_name == "argument":
        return _name(parameter)
    written = ", ".join([*parameter.opts, *parameter.secondary_opts])
    return written if parameter.is_flag else f"{written} {_name(parameter)}"


def _name(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.rstrip("_").upper())


def _help(parameter: Any) -> str:
    text, default = parameter.help or "", parameter.default
    is_said = "default" in text.lower() or default in (None, "", False) or callable(default)
    return text if is_said or parameter.param_type_name == "argument" else f"{text} [default: {default}]"


def _roff(text: str) -> str:
    """The text with what roff would take for commands escaped."""
    text = re.sub(r"[`*]{1,2}(\S[^`*]*)[`*]{1,2}", r"\1", text) if "`" in text else text
    text = (
        text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("~", "\\(ti").replace("^", "\\(ha")
    )
    return f"\\&{text}" if text.startswith((".", "'")) else text


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "man" / "mobilemoe.1"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page(), encoding="utf-8")
    print(target)


if __name__ == "__main__":
    main()
