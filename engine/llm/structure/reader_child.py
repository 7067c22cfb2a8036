"""The process that reads one model's structures first, within limits of time, memory and stack.

`python -m engine.llm.structure.reader_child PATH VOCAB_SIZE [EOS_TOKEN_ID ...]`, started by
`engine.llm.structure.reader_process`. A line of JSON comes in, a `Structure` as an object, and one
goes out: `{"text": …}` or `{"refusal": …}`. What takes too much ends this process and nothing else;
it ends itself when its standard input does.
"""

import contextlib
import json
import resource
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import EngineError
from engine.llm.structure.grammar_text import grammar_text
from engine.llm.structure.grammars import matcher_of
from engine.llm.structure.token_table import TokenTable, load_token_table
from engine.structure import Structure, StructureKind

CPU_SECONDS = 3
"""For one structure; the kernel counts in whole seconds."""
FIRST_TOKEN_SECONDS = 0.1
"""Of processor time, for what may be written first: in a step of the worker others would wait."""
MEMORY_BYTES = 2 << 30
"""Of address space, most of which is never touched."""
STACK_BYTES = 4 << 20
"""Half of what the worker's threads have: what is too deep for those is too deep here first."""


def main() -> None:
    """Answer until nobody asks any more."""
    # Whoever signals the whole group means the server, which drains first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    path, vocab_size, *ends = sys.argv[1:]
    table: TokenTable | EngineError
    try:
        table = load_token_table(Path(path), int(vocab_size), tuple(map(int, ends)))
    except EngineError as error:
        table = error
    _limit("RLIMIT_AS", MEMORY_BYTES)
    _limit("RLIMIT_STACK", STACK_BYTES)
    _limit("RLIMIT_CORE", 0)
    for line in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit("RLIMIT_CPU", int(used.ru_utime + used.ru_stime) + 1 + CPU_SECONDS)
        sys.stdout.write(json.dumps(answer(json.loads(line), table)) + "\n")
        sys.stdout.flush()


def answer(asked: Mapping[str, Any], table: TokenTable | EngineError) -> dict[str, Any]:
    """The grammar's text, tried out, or why there is none.

    Args:
        table: the model's tokens, or why they cannot be used.
    """
    if isinstance(table, EngineError):
        return {"refusal": table.message}
    structure = Structure(**{**asked, "kind": StructureKind(asked["kind"])})
    try:
        text = grammar_text(structure, table.names)
        matcher = matcher_of(structure, text, table.tokens)
    except EngineError as error:
        return {"refusal": error.message}
    started_s = time.process_time()
    matcher.compute_bitmask()
    matcher.compute_ff_tokens()
    if time.process_time() - started_s > FIRST_TOKEN_SECONDS:
        return {"refusal": f"{structure.param} takes too long to follow; make it smaller"}
    return {"text": text}


def _limit(name: str, most: int) -> None:
    """As far as this system has such a limit."""
    kind = getattr(resource, name)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))


if __name__ == "__main__":
    main()
