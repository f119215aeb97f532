"""Chat templates are programs of strangers: none leaves its sandbox, fills the memory, or runs for ever."""

from __future__ import annotations

import resource
import signal
import threading
import time
from pathlib import Path

import pytest

from caldpo.data import chat_template as rendering
from caldpo.data.chat_template import Renderer, bound_template
from caldpo.data.raw_row import RowError
from caldpo.errors import CaldpoError
from caldpo.evaluation.judge.pair_comparison import Pair, both_orders, load_template
from caldpo.utils.resource_limits import TooLong, bounded
from tests.data.small import chat, pair, rendered, word_tokenizer
from tests.helpers.messages import refused


def render(template: str) -> str:
    return rendered(pair(chat("a"), "yes", "no"), word_tokenizer(template=template)).chosen


@pytest.mark.parametrize(
    "template",
    [
        "{{ ().__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ joiner.__init__.__globals__ }}",
        "{{ lipsum.__globals__['os'].system('id') }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{{ messages|map(attribute='__class__')|list }}{{ (messages|first)['__class__'].__mro__ }}{{ ''.__class__ }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ '{a.__class__.__mro__}'.format_map({'a': messages}) }}",
        "{{ raise_exception.__globals__.keys() }}",
        "{{ strftime_now.__globals__['datetime'] }}",
        "{{ (1).__class__.__bases__ }}",
        "{{ dict.__class__.__mro__ }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ messages.append(1) }}",
        "{{ messages.clear() }}",
        "{{ (messages[0]).update({'role': 'x'}) }}",
        "{% macro m() %}{% endmacro %}{{ m.__call__.__globals__ }}",
        "{{ messages.__iter__.__self__.__class__ }}",
    ],
)
def test_escapes_fail_by_our_own_error(template: str) -> None:
    with refused("sandbox", key="data.chat_template", remedy="data.chat_template=FILE"):
        render(template)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception.__globals__ }}",
        "{{ messages|attr('__class__')|attr('__mro__') }}",
        "{{ messages|map(attribute='__class__')|join }}",
        "{% if ().__class__ is defined %}in{% endif %}",
        "{{ '{0.__class__}'.format(messages) }}",
    ],
)
def test_what_is_merely_named_is_nothing(template: str) -> None:
    assert Renderer(word_tokenizer(template=template)).prompt(chat("a"))[0] == ""


@pytest.mark.parametrize(
    "template", ["{% include '/etc/passwd' %}", "{% import 'os' as os %}{{ os }}", "{% extends '/etc/passwd' %}"]
)
def test_no_other_file_is_read(template: str) -> None:
    with pytest.raises((CaldpoError, RowError)) as error:
        render(template)
    assert "root:" not in str(error.value)


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 10**10 }}",
        "{{ ('a' * 10**10)|length }}",
        "{{ [1] * 10**10 }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ '{:>10000000000}'.format(1) }}",
        "{{ 'a'.ljust(10**10) }}",
        "{{ 'a'|center(10**10) }}",
        "{{ [[1]]|tojson(indent=10**10) }}",
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for i in range(100000) %}{{ 'a' * 1000 }}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ 'a' * 2_000_000 }}",
    ],
)
def test_what_takes_too_much_memory_is_stopped(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "MAX_MEBIBYTES", 100)
    with refused(key="data.chat_template", remedy="data.chat_template=FILE"):
        render(template)
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}{% endfor %}"
        "{% endfor %}",
        "{{ 9**(9**9) }}",
        "{{ lipsum(n=100000000) }}",
    ],
)
def test_what_takes_too_long_is_stopped(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "MAX_SECONDS", 0.3)
    started = time.process_time()
    with refused("0.3 seconds", key="data.chat_template", remedy="data.chat_template=FILE"):
        render(template)
    assert time.process_time() - started < 5
    assert signal.getsignal(signal.SIGPROF) is signal.SIG_IGN
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


def test_nesting_too_deep_for_python_is_the_templates_fault() -> None:
    with refused("nested", key="data.chat_template", remedy="data.chat_template=FILE"):
        render("{% for i in [1] %}" * 25 + "x" + "{% endfor %}" * 25)


def test_long_conversations_are_no_bombs() -> None:
    """Ten times what may be written around a conversation, in the conversation itself."""
    long = "x" * (10 * rendering.MAX_WRITTEN)
    assert len(Renderer(word_tokenizer()).prompt(chat(long))[0]) > len(long)


def test_the_bounds_hold_where_others_render_with_the_tokenizer() -> None:
    tokenizer = bound_template(word_tokenizer(template="{{ ('a' * 10**10)|length }}"))
    with pytest.raises(MemoryError):
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    plain = bound_template(word_tokenizer())
    assert plain.apply_chat_template(list(chat("a")), tokenize=False) == "user : a <eos> z "


def test_bounds_are_lifted_and_leave_other_errors_alone() -> None:
    with pytest.raises(KeyError), bounded(mebibytes=64, seconds=1):
        raise KeyError
    # more than what earlier tests may have left free within the process, which no bound keeps from being used again
    with pytest.raises(MemoryError), bounded(mebibytes=64, seconds=1):
        bytearray(2**32)
    assert len(bytearray(128 * 2**20)) == 128 * 2**20

    def stubborn() -> None:
        while True:
            try:
                sum(range(1000))
            except Exception:  # what catches errors does not catch this
                continue

    with pytest.raises(TooLong), bounded(mebibytes=64, seconds=0.05):
        stubborn()


def test_other_threads_are_bounded_in_memory() -> None:
    found: list[str] = []

    def work() -> None:
        try:
            render("{{ ('a' * 10**10)|length }}")
        except CaldpoError as error:
            found.append(error.message)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(found) == 1


def test_judges_templates_are_no_programs(tmp_path: Path) -> None:
    """Python's string.Template: names alone are filled in, once."""
    file = tmp_path / "t.txt"
    file.write_text("{{ ().__class__ }} {prompt.__class__} %(prompt)s $prompt $first $second")
    question, _ = both_orders(Pair("$first", "{{ 9**9 }}", "$prompt"), load_template(str(file)))
    assert question.text == "{{ ().__class__ }} {prompt.__class__} %(prompt)s $first {{ 9**9 }} $prompt"
    for trick in ("${prompt.__class__}", "$prompt.__class__ ${first}[0] $$second"):
        file.write_text(trick)
        with refused(key="judge.prompt"):
            load_template(str(file))
