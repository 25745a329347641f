"""A chat template that came with a model gets little time and memory, and every failure is one sentence."""

import os
import signal
import threading

import pytest

from mobilemoe.chat import CHAT_TEMPLATE, ChatTemplate
from mobilemoe.chat.renderer import ChildRenderer
from mobilemoe.errors import TokenizerError

HI = [{"role": "user", "content": "Hi"}]
BOMBS = {
    "repeat": "{{ 'a' * 10**10 }}",
    "repeat in the dark": "{% set x = 'a' * 10**10 %}",
    "power": "{{ 7 ** 9999999999 }}",
    "format": "{{ '%9999999999d' % 1 }}",
    "format by an argument": "{{ '%*d' % (9999999999, 1) }}",
    "format filter": "{{ '%9999999999d' | format(1) }}",
    "format method": "{{ '{:9999999999}'.format(1) }}",
    "center": "{{ 'a' | center(9999999999) }}",
    "center method": "{{ 'a'.center(9999999999) }}",
    "zfill": "{{ 'a'.zfill(9999999999) }}",
    "expandtabs": "{{ '\\t'.expandtabs(2**31 - 1) }}",
    "to_bytes": "{{ (1).to_bytes(9999999999, 'big') }}",
    "indent": "{{ 'a\\nb' | indent(9999999999) }}",
    "tojson": "{{ [[1]] | tojson(indent=3000000000) }}",
    "round": "{{ 5 | round(9**9, 'ceil') }}",
    "batch": "{{ [1] | batch(9999999999, 'x') | list }}",
    "slice": "{{ [1] | slice(9999999999) | list }}",
    "lipsum": "{{ lipsum(99999, false, 99999, 999999) }}",
    "replace": "{% set x = 'a' * 10000 %}{{ x | replace('a', x) | replace('a', x) }}",
    "join": "{{ range(99999) | join('a' * 99999) }}",
    "doubled text": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubled list": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubled block": "{% set x = 'ab' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 40,
    "hoard": "{% set n = namespace(x=[]) %}{% for i in range(99999) %}"
    "{% set n.x = n.x + ['%9999999d' % i] %}{% endfor %}",
    "nested loops": "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4,
    "25 nested loops": "{% for a in messages %}" * 25 + "x" + "{% endfor %}" * 25,
    "500 nested conditions": "{% if true %}" * 500 + "x" + "{% endif %}" * 500,
    "deep expression": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "recursive loop": "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
}


def work_since(used: os.times_result) -> float:
    """Seconds of a processor that this process and those of its children that have ended used since then."""
    now = os.times()
    return sum(getattr(now, name) - getattr(used, name) for name in ("user", "system", "children_user"))


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_one_sentence_soon(name: str) -> None:
    used = os.times()
    with pytest.raises(TokenizerError, match="the chat template") as caught:
        ChatTemplate(BOMBS[name]).render(HI)
    assert "\n" not in str(caught.value)
    assert work_since(used) < 5  # seconds of a processor: this machine may do much else


def test_a_template_that_never_ends_says_so_and_the_next_prompt_is_written() -> None:
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    template = ChatTemplate("{% if messages[0].content == 'stop' %}" + loops + "{% endif %}{{ messages[0].content }}")
    for _ in range(2):
        with pytest.raises(TokenizerError, match="takes more than 1 s"):
            template.render([{"role": "user", "content": "stop"}])
        assert template.render(HI) == "Hi"


def test_our_own_template_needs_no_process() -> None:
    assert not isinstance(ChatTemplate(CHAT_TEMPLATE)._renderer, ChildRenderer)


def test_texts_travel_whole() -> None:
    said = "\ud800 \x00 \U0001f642 \r\n" + "z" * 3_000_000
    assert ChatTemplate("{{ messages[0]['content'] }}!").render([{"role": "user", "content": said}]) == said + "!"


def test_threads_share_a_template() -> None:
    template = ChatTemplate("<{{ messages[0].content }}>")
    wrong: list[str] = []

    def use(name: str) -> None:
        for count in range(50):
            rendered = template.render([{"role": "user", "content": f"{name}{count}"}])
            if rendered != f"<{name}{count}>":
                wrong.append(rendered)

    threads = [threading.Thread(target=use, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_fork_and_its_parent_both_go_on() -> None:
    template = ChatTemplate("[{{ messages[0].content }}]")
    assert template.render(HI) == "[Hi]"
    child = os.fork()
    if child == 0:
        os._exit(0 if template.render(HI) == "[Hi]" else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert template.render(HI) == "[Hi]"


def test_a_process_that_was_killed_is_one_sentence_and_started_again() -> None:
    template = ChatTemplate("({{ messages[0].content }})")
    process = template._renderer._process
    os.kill(process.pid, signal.SIGSEGV)
    with pytest.raises(TokenizerError, match="its process ended"):
        template.render(HI)
    assert template.render(HI) == "(Hi)"


@pytest.mark.parametrize("state", ["ignored", "blocked"])
def test_the_limit_on_time_holds_whatever_signals_the_caller_does_without(state: str) -> None:
    """The signal of that limit would be inherited as ignored or blocked."""
    before = signal.getsignal(signal.SIGXCPU)
    if state == "ignored":
        signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    else:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGXCPU])
    used = os.times()
    try:
        loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
        with pytest.raises(TokenizerError, match="takes more than 1 s"):
            ChatTemplate(loops + "{{ messages[0].content }}").render(HI)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGXCPU])
        signal.signal(signal.SIGXCPU, before)
    assert work_since(used) < 5  # the limit on wall time would come after 30 s
