"""A thread for work that clients take turns at."""

import heapq
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

STACK_BYTES = 16 << 20
"""Of the thread, whatever the system's default is."""


class Turns:
    """Does one thing of each client in turn, the shortest of that client's, so that nobody waits
    for all that another one asked.

    The thread starts when it is first needed, and ends when nobody holds this any more.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, list[tuple[int, int, Callable[[], None]]]] = OrderedDict()
        """By client, whose turn is next is the first: a heap of lengths, arrivals, and what is to
        be done."""
        self._arrivals = itertools.count()

    def take_turn(self, client: str, length: int, work: Callable[[], None]) -> None:
        """Have something done, which raises nothing, when this client's turn has come."""
        with self._lock:
            works = self._waiting.setdefault(client, [])
            heapq.heappush(works, (length, next(self._arrivals), work))
            if self._thread is None:
                self._thread = _thread_of_known_stack(self._name)
            self._thread.submit(self._do_next)

    def _do_next(self) -> None:
        with self._lock:
            client, works = self._waiting.popitem(last=False)
            _, _, work = heapq.heappop(works)
            if works:
                self._waiting[client] = works
        work()


def _thread_of_known_stack(name: str) -> ThreadPoolExecutor:
    thread = ThreadPoolExecutor(1, thread_name_prefix=name)
    before = threading.stack_size(STACK_BYTES)
    try:
        thread.submit(int)  # starts it
    finally:
        threading.stack_size(before)
    return thread
