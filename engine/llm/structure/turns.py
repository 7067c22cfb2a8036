"""A thread whose work is shared out to clients in turns."""

import heapq
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

STACK_BYTES = 16 << 20
"""The thread's stack, whatever the system's default is."""


class Turns:
    """Does one piece of work of each client in turn, the shortest first, so that no client waits
    for all work of another one.

    The thread starts when it is first needed, and ends when this object is not held any more.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, list[tuple[int, int, Callable[[], None]]]] = OrderedDict()
        """By client, the next one first: a heap of lengths, arrivals and pieces of work."""
        self._arrivals = itertools.count()

    def take_turn(self, client: str, length: int, work: Callable[[], None]) -> None:
        """Queue work, which must raise nothing, until it is this client's turn."""
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
