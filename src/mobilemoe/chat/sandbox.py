"""Renders one chat template. As a script it is the process with limits that `renderer` starts for a template that came
with a model: such a template is a program, and only a limited process bounds what a program can use.

It imports nothing else of this package, so that it starts quickly. A frame on its pipes is a length of eight bytes and
then JSON: first {"source"}, then one request for each prompt.
"""

from __future__ import annotations

import json
import math
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import IO, Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_PROMPT_CHARACTERS = 2**24  # some thirty times the longest context; a template that writes more is malicious
MEMORY_BYTES = 3 * 2**28  # four bytes for each of those characters, a few times over, and the interpreter
CPU_SECONDS = 1  # for one prompt, and up to one more; normal templates take milliseconds


class Renderer:
    """A compiled template. Its methods raise whatever a program can raise."""

    def __init__(self, source: str) -> None:
        self._environment = _environment()
        self._template = self._environment.from_string(source)
        self.marks_generation = self._environment.marks_generation

    def render(self, names: Mapping[str, Any], unset: Sequence[str], marks: tuple[str, str] = ("", "")) -> str:
        """What the template writes, `marks` around each {% generation %}. Using an `unset` name is not an error."""
        self._environment.generation_marks = marks
        undefined = {name: jinja2.Undefined(name=name) for name in unset}
        pieces: list[str] = []
        left = MAX_PROMPT_CHARACTERS
        for piece in self._template.generate({**undefined, **names}):
            pieces.append(piece)
            left -= len(piece)
            if left < 0:
                raise OverflowError(f"it writes more than {MAX_PROMPT_CHARACTERS} characters")
        return "".join(pieces)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja as transformers sets it up for chat templates."""

    marks_generation = False
    generation_marks = ("", "")


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %}: encloses what the assistant writes."""

    tags = {"generation"}  # noqa: RUF012 - declared so by Jinja
    environment: _Environment

    def parse(self, parser: Parser) -> nodes.Node:
        self.environment.marks_generation = True
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Any) -> str:
        begin, end = self.environment.generation_marks
        return f"{begin}{caller()}{end}"


class _LoudUndefined(jinja2.Undefined):
    """A template may test whether it is defined; writing it out is an error and not silently empty (see `_written`)."""


def _written(value: Any) -> Any:
    if isinstance(value, _LoudUndefined):
        value._fail_with_undefined_error()
    return value


class _Namespace(jinja2.utils.Namespace):
    """Without names that reach into the interpreter."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        names = dict(*rest, **kwargs)
        for name in names:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, names)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"{name!r} is no name for a namespace's value")


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=_LoudUndefined,
        finalize=_written,
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.globals["namespace"] = _Namespace
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes <, > and & for HTML, which a prompt must not.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def one_line(fault: BaseException) -> str:
    """The error's message on one line, to end a sentence with."""
    if isinstance(fault, MemoryError):
        return "it needs too much memory"
    return " ".join(str(fault).split()) or type(fault).__name__


def write_frame(pipe: IO[bytes], value: Any) -> None:
    """Sends one JSON value; half surrogates travel as they are."""
    data = json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass")
    pipe.write(len(data).to_bytes(8, "little") + data)
    pipe.flush()


def _read_frame(pipe: IO[bytes]) -> Any:
    """The next value. Raises EOFError if the other side has closed the pipe."""
    head = pipe.read(8)
    if len(head) < 8:
        raise EOFError
    return json.loads(pipe.read(int.from_bytes(head, "little")).decode(errors="surrogatepass"))


def _limit(kind: int, value: int) -> None:
    with suppress(ValueError, OSError):  # a system without this limit, or with a lower one
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _answer(renderer: Renderer | None, request: dict[str, Any]) -> tuple[Renderer, Any]:
    if renderer is None:
        renderer = Renderer(request["source"])
        return renderer, renderer.marks_generation
    return renderer, renderer.render(request["names"], request["unset"], request["marks"])


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    renderer = None
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)  # which who started the run may have ignored or blocked
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGXCPU])
    for kind, value in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, MEMORY_BYTES)):
        _limit(kind, value)
    with suppress(EOFError):
        while True:
            request = _read_frame(requests)
            used = resource.getrusage(resource.RUSAGE_SELF)
            _limit(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime) + CPU_SECONDS)
            try:
                renderer, result = _answer(renderer, request)
                answer = {"result": result}
            except Exception as fault:  # a template is a program: it can raise anything
                answer = {"fault": one_line(fault)}
            write_frame(answers, answer)


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
