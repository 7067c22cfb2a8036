"""A chat template in its own process: the same text, and limits that hold against any template."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.errors import ChatTemplateFailed, CorruptFile, Draining, InvalidParameter, QueueFull
from engine.text import template_process
from engine.text.chat_template import ChatTemplate
from engine.text.template_process import MAX_SOURCE_CHARS, TemplateLimits, TemplateProcess

USER = {"role": "user", "content": "What is 1 + 1? «ü» 😀"}
HONEST = "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }}\n{% endfor %}"
SPECIAL = {"bos_token": "<s>"}
LIMITS = TemplateLimits(cpu_s=1, wall_s=60, turn_s=300, memory_bytes=256 << 20)

LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
GREEDY = {
    "ljust": "{{ 'a'.ljust(2000000000) }}",
    "center": "{{ 'a' | center(2000000000) }}",
    "percent": "{{ '%2000000000d' % 1 }}",
    "format": "{{ '{:2000000000}'.format(1) }}",
    "indent": "{{ [[1]] | tojson(indent=2000000000) }}",
    "doubling": "{% set ns = namespace(x='ab') %}{% for i in range(40) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x | length }}",
    "replace": "{% set ns = namespace(x='aa') %}{% for i in range(40) %}"
    "{% set ns.x = ns.x | replace('a', 'aa') %}{% endfor %}{{ ns.x | length }}",
    "list": "{% set ns = namespace(x=[1]) %}{% for i in range(40) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x | length }}",
}


@contextlib.asynccontextmanager
async def process(source: str, limits: TemplateLimits = LIMITS) -> AsyncIterator[TemplateProcess]:
    """A process that has started."""
    template = TemplateProcess(source, SPECIAL, limits)
    try:
        await template.start()
        yield template
    finally:
        template.close()


@pytest.fixture(autouse=True)
def others() -> Iterator[None]:
    """Processes that other tests' servers have left running do not count."""
    OTHERS.update(children())
    yield
    OTHERS.clear()


OTHERS: set[int] = set()


def children() -> set[int]:
    """Template processes of this one."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "engine.text.template_child" in " ".join(child.cmdline()):
                found.add(child.pid)
    return found - OTHERS


async def gone(pids: set[int], timeout_s: float = 90.0) -> None:
    async with asyncio.timeout(timeout_s):
        while any(map(is_running, pids)):  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_renders_what_the_class_renders() -> None:
    options: dict[str, Any] = {"add_generation_prompt": True, "extra": [1, 10**30, {"a": None}]}
    chat = [USER, {"role": "assistant", "content": None, "tool_calls": [{"x": 1.5}]}]
    source = HONEST + "{{ extra | tojson }}{{ tools is none }}{{ messages[1].tool_calls }}"
    async with process(source) as template:
        expected = ChatTemplate(source, SPECIAL).render(chat, **options)
        assert await template.render(chat, options) == expected
        assert len(children()) == 1


async def test_arguments_of_calls_are_read_in_the_process() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    texts = ['{"a": [1, "é"]}', "{not json", "[1]", '{"a": ' + deep + "}", '{"b": 1e999}']
    calls = [{"function": {"name": "f", "arguments": text}} for text in [*texts, {"c": None}]]
    source = "{% for call in messages[0].tool_calls %}"
    source += "{{ call.function.arguments is mapping }} {% endfor %}"
    source += "{{ messages[0].tool_calls[0].function.arguments | tojson }}"
    async with process(source) as template:
        text = await template.render([{**USER, "tool_calls": calls}], {})
        assert text == 'True False False False True True {"a": [1, "é"]}'


async def test_refusals_arrive_as_they_were() -> None:
    async with process("{{ raise_exception('roles must alternate') }}") as template:
        with pytest.raises(InvalidParameter, match="roles must alternate") as caught:
            await template.render([USER], {})
        assert caught.value.param == "messages"
        with pytest.raises(InvalidParameter, match="cannot be combined") as caught:
            await template.render([USER], {"continue_final_message": True})
        assert caught.value.param == "continue_final_message"
        assert len(children()) == 1


@pytest.mark.parametrize(
    "source", ["{% for %}", "{{ x | no_such_filter }}", "(" + "{{ " + "(" * 999]
)
async def test_no_template_at_all(source: str) -> None:
    with pytest.raises(CorruptFile, match="chat template"):
        async with process(source):
            pass


async def test_an_endless_loop_is_stopped_and_others_go_on() -> None:
    """The template's own later conversations too: a new process is there for them."""
    source = "{% if messages[0].content == 'loop' %}" + LOOP + "{% endif %}" + HONEST
    async with process(source) as template, process(HONEST) as other:
        start_s = time.monotonic()
        bad = asyncio.create_task(template.render([{"role": "user", "content": "loop"}], {}))
        while not bad.done():
            assert "What is" in await other.render([USER], {})
            await asyncio.sleep(0.01)
        with pytest.raises(InvalidParameter, match="1 s of processor time"):
            await bad
        assert time.monotonic() - start_s < LIMITS.wall_s
        assert "What is" in await template.render([USER], {})


async def test_a_process_that_never_starts_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    command = (sys.executable, "-c", "import time; time.sleep(600)")
    monkeypatch.setattr(template_process, "module_command", lambda *_: command)
    with pytest.raises(CorruptFile, match="too long or too much memory"):
        async with process(HONEST, TemplateLimits(start_s=0.5)):
            pass


async def test_time_that_passes_without_work_is_bounded_too() -> None:
    """A process that was stopped, or that waits for memory."""
    async with process(HONEST, TemplateLimits(wall_s=1.0)) as template:
        [pid] = children()
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(InvalidParameter, match="more than 1 s and was stopped"):
            await template.render([USER], {})
        await gone({pid})


@pytest.mark.parametrize("kind", GREEDY)
async def test_memory_is_bounded(kind: str) -> None:
    limits = TemplateLimits(cpu_s=10, wall_s=60, memory_bytes=LIMITS.memory_bytes)
    async with process(
        "{% if greedy %}" + GREEDY[kind] + "{% endif %}" + HONEST, limits
    ) as template:
        [pid] = children()
        peak = asyncio.create_task(peak_memory(pid))
        with pytest.raises(
            InvalidParameter, match=r"too much memory|too many times|too large a power"
        ):
            await template.render([USER], {"greedy": True})
        assert await peak < LIMITS.memory_bytes
        assert "What is" in await template.render([USER], {})


async def peak_memory(pid: int) -> int:
    """Resident bytes at most, until the process ends or for a second."""
    peak, end_s = 0, time.monotonic() + 1
    while time.monotonic() < end_s:
        with contextlib.suppress(psutil.NoSuchProcess):
            peak = max(peak, psutil.Process(pid).memory_info().rss)
        await asyncio.sleep(0.005)
    return peak


@pytest.mark.parametrize(
    "source",
    ["{{ " + "+".join(["1"] * 200_000) + " }}", "{% if x %}" * 20_000, "{{ x }}" * 140_000],
    ids=["sum", "nested", "many"],
)
async def test_compiling_is_bounded(source: str) -> None:
    """Either it can be done within the limits, or it is refused; nothing hangs, nothing crashes."""
    start_s = time.monotonic()
    try:
        async with process(source):
            pass
    except CorruptFile as error:
        assert "chat template" in str(error)
    assert time.monotonic() - start_s < LIMITS.wall_s


def test_a_template_that_is_no_size_for_a_template() -> None:
    with pytest.raises(CorruptFile, match="the limit is 1048576"):
        TemplateProcess("x" * (MAX_SOURCE_CHARS + 1), {})


async def test_a_process_that_crashes_at_work_fails_that_conversation_only() -> None:
    source = "{% if loop %}" + LOOP + "{% endif %}" + HONEST
    async with process(source, TemplateLimits(cpu_s=60, wall_s=60)) as template:
        [pid] = children()
        child = psutil.Process(pid)
        used_s = child.cpu_times().user
        bad = asyncio.create_task(template.render([USER], {"loop": True}))
        async with asyncio.timeout(30):
            while child.cpu_times().user < used_s + 0.1:  # noqa: ASYNC110 (nobody tells)
                await asyncio.sleep(0.01)
        good = asyncio.create_task(template.render([USER], {}))
        await asyncio.sleep(0.1)
        os.kill(pid, signal.SIGSEGV)
        with pytest.raises(ChatTemplateFailed, match="process of the model's chat template ended"):
            await bad
        assert "What is" in await good


async def test_whoever_leaves_is_not_answered_with_anothers_text() -> None:
    # The first takes a second or so: none is answered before some leave.
    long = "{% for i in range(9999) %}{% for j in range(999) %}{% endfor %}{% endfor %}"
    source = "{% if messages[0].content == '0' %}" + long + "{% endif %}" + HONEST
    async with process(source, TemplateLimits(cpu_s=60, wall_s=60)) as template:
        tasks = [
            asyncio.create_task(template.render([{"role": "user", "content": str(i)}], {}))
            for i in range(8)
        ]
        await asyncio.sleep(0.05)
        for task in tasks[::2]:
            task.cancel()
        assert await asyncio.gather(*tasks[1::2]) == [f"<s>user: {i}\n" for i in range(1, 8, 2)]
        assert all(task.cancelled() for task in tasks[::2])


async def test_those_behind_a_loop_are_served_by_the_next_process() -> None:
    source = "{% if messages[0].content == 'loop' %}" + LOOP + "{% endif %}" + HONEST
    async with process(source) as template:
        contents = ["a", "loop", "b", "loop", "c"]
        results = await asyncio.gather(
            *(template.render([{"role": "user", "content": content}], {}) for content in contents),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [
            str, InvalidParameter, str, InvalidParameter, str
        ]  # fmt: skip
        assert results[::2] == [f"<s>user: {content}\n" for content in "abc"]


async def test_nobody_waits_for_ever_for_a_turn() -> None:
    limits = TemplateLimits(cpu_s=60, wall_s=60, turn_s=0.2)
    async with process("{% if loop %}" + LOOP + "{% endif %}" + HONEST, limits) as template:
        busy = asyncio.create_task(template.render([USER], {"loop": True}))
        await asyncio.sleep(0.05)
        with pytest.raises(QueueFull, match="busy with others") as caught:
            await template.render([USER], {})
        assert caught.value.retry_after_s
        busy.cancel()
        await asyncio.gather(busy, return_exceptions=True)


async def test_sixteen_at_once_each_get_their_own() -> None:
    async with process(HONEST) as template:
        chats = [[{"role": "user", "content": f"question {i}"}] for i in range(16)]
        texts = await asyncio.gather(*(template.render(chat, {}) for chat in chats))
        assert texts == [f"<s>user: question {i}\n" for i in range(16)]


async def test_long_conversations_go_through_whole() -> None:
    chat = [{"role": "user", "content": "a «ü» 😀 \x01\n" * 200_000}]
    async with process(HONEST) as template:
        assert await template.render(chat, {}) == f"<s>user: {chat[0]['content']}\n"


async def test_closing_ends_the_process() -> None:
    async with process(HONEST) as template:
        pids = children()
        template.close()
        await gone(pids)
        with pytest.raises(Draining, match="shutting down"):
            await template.render([USER], {})


async def test_closing_ends_what_waits() -> None:
    async with process(LOOP, TemplateLimits(cpu_s=60, wall_s=60)) as template:
        waiting = [asyncio.create_task(template.render([USER], {})) for _ in range(3)]
        await asyncio.sleep(0.3)
        template.close()
        results = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10)
        assert [type(result) for result in results] == [Draining] * 3


async def test_dropping_it_ends_the_process() -> None:
    template = TemplateProcess(HONEST, SPECIAL)
    await template.start()
    pids = children()
    del template
    await gone(pids)


_PARENT = """
import asyncio, sys
from engine.text.template_process import TemplateProcess, TemplateLimits

async def main():
    template = TemplateProcess(sys.argv[1], {}, TemplateLimits(cpu_s=1, wall_s=300))
    await template.start()
    print(template._process.running().process_id, flush=True)
    await template.render([{"role": "user", "content": ""}], {})
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("source", ["idle", LOOP], ids=["idle", "busy"])
async def test_it_ends_with_a_parent_that_was_killed(source: str) -> None:
    root = Path(__file__).parents[3]
    parent = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", _PARENT, source], stdout=subprocess.PIPE, cwd=root, text=True
    )
    try:
        assert parent.stdout is not None
        child = int(await asyncio.to_thread(parent.stdout.readline))
        await asyncio.sleep(0.3)
        assert psutil.pid_exists(child)
    finally:
        parent.kill()
        parent.communicate()
    await gone({child})


def test_it_starts_without_what_it_does_not_need() -> None:
    """A second start costs the next conversation its time."""
    code = (
        "import sys; import engine.text.template_child; "
        "print(sorted({'torch', 'numpy', 'tokenizers', 'fastapi', 'pydantic', 'structlog'} "
        "& sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
