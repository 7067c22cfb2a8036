"""Grammars of the structures that requests ask for: made in a thread, kept while there is room."""

import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from weakref import WeakValueDictionary

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from engine.errors import InvalidParameter
from engine.llm.structure.token_table import TokenTable
from engine.structure import Structure, StructureKind

MAX_KEPT_BYTES = 512 << 20
"""Of grammars that are kept for requests to come, if each has grown as large as it may."""
_GROWN_BYTES = 16 << 20
"""What the states of a lexer take, at most, which are added as texts need them."""
STACK_BYTES = 16 << 20
"""Of the thread that makes grammars, whatever the system's default is."""
LIMITS = LLParserLimits(
    initial_lexer_fuel=500_000,
    step_lexer_fuel=100_000,
    step_max_items=10_000,
    max_items_in_row=1_000,
    max_lexer_states=25_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
"""What making a grammar, and a mask of it, may take. A request that needs more ends with an error.
docs/decisions/014-structured-output.md has what that comes to."""


_ONE_OF = (
    "more than one branch of a oneOf may hold; use anyOf, or require a property in each branch "
    "whose const is a string of its own"
)
"""Instead of the library's words, which name an option that is not the client's."""
_NO_TEXT = "no text fits it, for something in it needs itself without end"
"""Instead of the library's `NoExtensionBias`."""


class Grammar:
    """One structure's grammar."""

    def __init__(self, structure: Structure, start: LLMatcher) -> None:
        self.structure = structure
        self._start = start

    def matcher(self) -> LLMatcher:
        """At the beginning of a text."""
        return self._start.deep_copy()

    @property
    def num_bytes(self) -> int:
        """What it may take: above all that were measured."""
        return _GROWN_BYTES + 64 * len(self.structure.text)


class Grammars:
    """Those of one model.

    Args:
        load_tokens: makes the model's table of tokens; called once, in the thread.
        read: gives the text of a structure's grammar, or raises an EngineError; in the thread.
    """

    def __init__(
        self, load_tokens: Callable[[], TokenTable], read: Callable[[Structure], str]
    ) -> None:
        self._load_tokens = load_tokens
        self._read = read
        self._tokens: TokenTable | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        """Of what follows; nothing is made while it is held."""
        self._known: WeakValueDictionary[Structure, Grammar] = WeakValueDictionary()
        """Kept, or held by somebody."""
        self._kept: OrderedDict[Structure, Grammar] = OrderedDict()
        """The one that was asked for last is the last."""
        self._num_kept_bytes = 0

    def warm_up(self) -> None:
        """Have the table of tokens made. If that cannot be, structures are refused with the
        reason."""
        self._running_thread().submit(self._known_tokens)

    def prepare(self, structure: Structure) -> "Future[Grammar]":
        """Make a grammar, unless it is there. Whoever holds it finds it by `find` at once.

        The future's exception is an EngineError where the structure cannot be honoured.
        """
        known = self._known.get(structure)
        if known is not None:
            self._keep(known)
            done: Future[Grammar] = Future()
            done.set_result(known)
            return done
        return self._running_thread().submit(self.find, structure)

    def find(self, structure: Structure) -> Grammar:
        """A grammar, made now if it is not there.

        Raises:
            InvalidParameter, UnsupportedFeature: the structure cannot be honoured.
        """
        grammar = self._known.get(structure)
        if grammar is None:
            made = self._make(structure)
            with self._lock:
                grammar = self._known.setdefault(structure, made)
        self._keep(grammar)
        return grammar

    def renewed(self, grammar: Grammar) -> Grammar:
        """Another one in its place: texts share a lexer, whose states become too many some day.

        Raises:
            EngineError: as `find` does.
        """
        structure = grammar.structure
        with self._lock:
            if self._known.get(structure) is grammar:
                del self._known[structure]
                if self._kept.pop(structure, None) is not None:
                    self._num_kept_bytes -= grammar.num_bytes
        return self.find(structure)

    def _make(self, structure: Structure) -> Grammar:
        text = self._read(structure)
        return Grammar(structure, matcher_of(structure, text, self._known_tokens().tokens))

    def _known_tokens(self) -> TokenTable:
        if self._tokens is None:
            self._tokens = self._load_tokens()
        return self._tokens

    def _running_thread(self) -> ThreadPoolExecutor:
        if self._thread is None:
            self._thread = _thread_of_known_stack()
        return self._thread

    def _keep(self, grammar: Grammar) -> None:
        with self._lock:
            if self._kept.pop(grammar.structure, None) is None:
                self._num_kept_bytes += grammar.num_bytes
            self._kept[grammar.structure] = grammar
            while self._num_kept_bytes > MAX_KEPT_BYTES:
                _, oldest = self._kept.popitem(last=False)
                self._num_kept_bytes -= oldest.num_bytes


def _thread_of_known_stack() -> ThreadPoolExecutor:
    thread = ThreadPoolExecutor(1, thread_name_prefix="grammars")
    before = threading.stack_size(STACK_BYTES)
    try:
        thread.submit(int)  # starts it
    finally:
        threading.stack_size(before)
    return thread


def matcher_of(structure: Structure, text: str, tokens: LLTokenizer) -> LLMatcher:
    """At the beginning of a text.

    Args:
        text: of the structure's grammar.

    Raises:
        InvalidParameter: the structure cannot be honoured.
    """
    matcher = LLMatcher(tokens, text, log_level=0, limits=LIMITS)
    if matcher.is_error():
        raise refusal(structure, matcher.get_error())
    return matcher


def refusal(structure: Structure, reason: str) -> InvalidParameter:
    """What a client is told of a structure that cannot be honoured."""
    lines = reason.replace("<non-verbose/>", "").split("\n")
    if structure.kind is StructureKind.TAGS:
        # What follows is the grammar, which the client has not written.
        lines = [re.sub(r"^at \d+\(\d+\): ", "", lines[0])]
    said = " ".join(line.strip() for line in lines if line.strip())[:400]
    if "coerce_one_of" in said:
        said = _ONE_OF
    elif "NoExtensionBias" in said:
        said = _NO_TEXT
    return InvalidParameter(
        f"{structure.param} cannot be honoured: {said}; change it, or leave it out",
        param=structure.param,
    )
