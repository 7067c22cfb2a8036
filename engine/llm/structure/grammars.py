"""Makes the grammars of requested structures in threads, and keeps them within a limit of
memory."""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from functools import partial
from typing import TypeVar
from weakref import WeakValueDictionary, ref

from llguidance import LLMatcher

from engine.contract.structure import Structure
from engine.errors import InvariantViolation, QueueFull
from engine.llm.structure.matcher import matcher_of
from engine.llm.structure.reading import CPU_SECONDS, QUICK_SECONDS, Read, Reading, too_much
from engine.llm.structure.token_table import TokenTable
from engine.llm.structure.turns import Turns

MAX_KEPT_BYTES = 512 << 20
"""The most bytes of grammars that are kept for later requests, each counted as large as it may
grow."""
MAX_HELD_BYTES = 1 << 30
"""The most bytes of all grammars, kept or held by requests, without what texts have added to
them."""
_GROWN_BYTES = 48 << 20
"""The most bytes that a lexer's states take; they are added as texts need them. `[ab]*a[ab]{1000}`
was measured to need 42 MiB for as many states as there may be."""

T = TypeVar("T")


class Grammar:
    """One structure's grammar. Its texts share a lexer. When the lexer has too many states, the
    grammar gets another `start`."""

    def __init__(self, structure: Structure, reading: Reading, start: LLMatcher) -> None:
        self.structure = structure
        self.reading = reading
        self.start = start
        """A matcher at the beginning of a text; it must stay there."""
        self.coming: Future[LLMatcher] | None = None
        """The start that is being made to replace this one."""
        self.num_texts = 0
        """The texts that follow it now."""
        self.has_grown = False
        """Whether texts may have added states to the start's lexer."""

    @property
    def num_bytes(self) -> int:
        """The bytes that it may take, an upper bound of all that were measured."""
        return _GROWN_BYTES + self.reading.num_bytes + 64 * len(self.structure.text)


class Grammars:
    """The grammars of one model.

    Structures that are read within `QUICK_SECONDS` overtake slower ones: there is a thread for each
    of the two kinds, and in each thread clients take turns.

    Args:
        load_tokens: makes the model's table of tokens; called only once, in a thread.
        read: `ReaderProcess.read` or a substitute; called in a thread.
        start_reader: starts what `read` needs; called in a thread.
    """

    def __init__(
        self,
        load_tokens: Callable[[], TokenTable],
        read: Read,
        start_reader: Callable[[], None] = lambda: None,
    ) -> None:
        self._load_tokens = load_tokens
        self._read = read
        self._start_reader = start_reader
        self._is_warm = False
        self._tokens: TokenTable | None = None
        self._tokens_lock = threading.Lock()
        self._quick = Turns("grammars")
        self._slow = Turns("large-grammars")
        self._lock = threading.Lock()
        """Guards the fields below; nothing is made while it is held."""
        self._known: WeakValueDictionary[Structure, Grammar] = WeakValueDictionary()
        """The grammars that are kept or held by a request."""
        self._kept: OrderedDict[Structure, Grammar] = OrderedDict()
        """The kept grammars; the one that was requested last is the last."""
        self._num_kept_bytes = 0

    def warm_up(self) -> None:
        """Have a thread start the reader and make the table of tokens, once. If that fails,
        structures are refused with the reason."""
        if not self._is_warm:
            self._is_warm = True
            self._quick.take_turn("", 0, partial(_settle, Future[TokenTable](), self._warm_up))

    def prepare(self, structure: Structure, client: str = "") -> "Future[Grammar]":
        """Make a grammar, unless it exists. While it is held, `begin_text` finds it at once.

        The future's exception is an EngineError if the structure cannot be honoured. A structure
        whose future is cancelled before its turn is not read.
        """
        grammar: Future[Grammar] = Future()
        known = self._known.get(structure)
        if known is not None:
            self._keep(known)
            grammar.set_result(known)
        else:
            self.warm_up()
            make = partial(self._quickly, structure, client, grammar)
            self._quick.take_turn(client, len(structure.text), partial(_settle, grammar, make))
        return grammar

    def begin_text(self, structure: Structure) -> Grammar:
        """Find a grammar that is held, for a text that follows it until `end_text`. Nothing is
        made, since steps wait for this.

        Raises:
            InvariantViolation: there is none.
        """
        grammar = self._known.get(structure)
        if grammar is None or grammar.structure != structure:
            raise InvariantViolation("a structure's grammar was not prepared")
        grammar.num_texts += 1
        grammar.has_grown = True
        return grammar

    def end_text(self, grammar: Grammar) -> None:
        """Note that a text follows the grammar no longer."""
        grammar.num_texts -= 1
        self._shed(grammar)

    def _shed(self, grammar: Grammar) -> None:
        """Free the states that texts have added to a grammar that is not kept, while requests wait
        with it: it gets a new start once no text follows it."""
        if grammar.num_texts or not grammar.has_grown or grammar.structure in self._kept:
            return
        held = ref(grammar)

        def shed() -> None:
            if (grammar := held()) is not None:
                self.renewed(grammar, grammar.start)

        self._quick.take_turn(grammar.structure.digest, 0, shed)

    def renewed(self, grammar: Grammar, worn: LLMatcher) -> "Future[LLMatcher]":
        """Make another start of a grammar whose lexer is used up, beside the steps and once for all
        that ask."""
        with self._lock:
            if grammar.start is not worn:
                done: Future[LLMatcher] = Future()
                done.set_result(grammar.start)
                return done
            if grammar.coming is not None:
                return grammar.coming
            coming = grammar.coming = Future[LLMatcher]()
        turns = self._quick if grammar.reading.seconds <= QUICK_SECONDS else self._slow
        # The turn is the structure's own, as texts of several clients may wait for it.
        name = grammar.structure.digest
        turns.take_turn(name, 0, partial(_settle, coming, partial(self._renew, grammar)))
        return coming

    def _renew(self, grammar: Grammar) -> LLMatcher:
        start = grammar.start
        try:
            start = self._start_of(grammar.structure, grammar.reading)
        finally:
            with self._lock:
                grammar.start, grammar.coming, grammar.has_grown = start, None, False
        return start

    def _quickly(
        self, structure: Structure, client: str, made: "Future[Grammar]"
    ) -> Grammar | None:
        """Make a grammar if that is quick. Otherwise queue it among the slow ones and return
        None."""
        grammar = self._find(structure, QUICK_SECONDS)
        if grammar is None:
            make = partial(self._patiently, structure)
            self._slow.take_turn(client, len(structure.text), partial(_settle, made, make))
        return grammar

    def _patiently(self, structure: Structure) -> Grammar:
        grammar = self._find(structure, CPU_SECONDS)
        if grammar is None:
            raise too_much(structure, f"more than {CPU_SECONDS:.0f} s of processor time")
        return grammar

    def _find(self, structure: Structure, cpu_s: float) -> Grammar | None:
        """Find or make a grammar; None if reading it takes longer than `cpu_s`."""
        grammar = self._known.get(structure)
        if grammar is None:
            reading = self._read(structure, cpu_s)
            if reading is None:
                return None
            self._check_room(structure, reading)
            made = Grammar(structure, reading, self._start_of(structure, reading))
            with self._lock:
                grammar = self._known.setdefault(structure, made)
        self._keep(grammar)
        return grammar

    def _check_room(self, structure: Structure, reading: Reading) -> None:
        with self._lock:
            held = sum(one.reading.num_bytes for one in self._known.values())
        if held + reading.num_bytes > MAX_HELD_BYTES:
            raise QueueFull(
                f"the grammar of {structure.param} takes {reading.num_bytes >> 20} MB and those of "
                f"other requests {held >> 20} MB; the limit for all is {MAX_HELD_BYTES >> 20} MB: "
                "try again later, or make it smaller",
                param=structure.param,
            )

    def _start_of(self, structure: Structure, reading: Reading) -> LLMatcher:
        return matcher_of(structure, reading.text, self._known_tokens().tokens)

    def _warm_up(self) -> TokenTable:
        self._start_reader()
        return self._known_tokens()

    def _known_tokens(self) -> TokenTable:
        with self._tokens_lock:
            if self._tokens is None:
                self._tokens = self._load_tokens()
            return self._tokens

    def _keep(self, grammar: Grammar) -> None:
        with self._lock:
            if self._kept.pop(grammar.structure, None) is None:
                self._num_kept_bytes += grammar.num_bytes
            self._kept[grammar.structure] = grammar
            while self._num_kept_bytes > MAX_KEPT_BYTES:
                _, oldest = self._kept.popitem(last=False)
                self._num_kept_bytes -= oldest.num_bytes
                self._shed(oldest)


def _settle(outcome: "Future[T]", make: Callable[[], T | None]) -> None:
    """Settle a future with what is made, unless it was cancelled; None means that it is settled
    elsewhere."""
    if outcome.cancelled():
        return
    with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
        try:
            made = make()
        except BaseException as error:
            outcome.set_exception(error)
        else:
            if made is not None:
                outcome.set_result(made)
