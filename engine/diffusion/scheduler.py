"""Decides which drawings run next: fair shares for shapes, and an express lane for short drawings.

Drawings of one group (kind of stage, weights, shape) can share a call. Groups are served by
start-time fair queueing, which is deficit round-robin without a quantum to tune: every group has a
virtual time that grows by the seconds it was served, divided by its weight, and the group that is
furthest behind runs next.

**Express.** A step of nine drawings takes longer than a step of one, so a short drawing that joins
a long-running batch would wait for all of them at each step. Therefore drawings whose whole work is
less than a third of the others' mean also get calls without the others. These calls take at most
half of the group's time in the long run, and may run ahead by the time of `EXPRESS_LEAD` steps of
the whole batch, enough to finish a short drawing at once. With a solo step of t1 and a full step of
t9, ten steps that arrive during a full step are done after at most t9 + 10·t1. That is within twice
their solo time if nine drawings together take no longer than nine alone.

The whole work counts, not the remaining work: every drawing is nearly done at some time, and calls
of its own would then cost a batch of mixed lengths half of its throughput.

There are no tensors here: a drawing is an id, a group, its rows and its steps.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

EXPRESS_SHARE_OF_MEAN = 1 / 3
"""Drawings with less work than this share of the others' mean get express calls."""
EXPRESS_LEAD = 4
"""Express calls may take the time of this many steps of the whole batch before its next step."""
_MAX_WEIGHT_EXPONENT = 8


@dataclass(slots=True, kw_only=True)
class Entry:
    """The scheduler's view of a drawing."""

    drawing_id: int
    group: Hashable
    num_rows: int
    """The number of rows of its next step."""
    num_pixels: int
    """The pixels of a row, to which its cost and its activations are proportional."""
    num_steps: int
    """The number of steps from first to last."""
    priority: int = 0
    """Lower values run first within a group, and give the group a larger share."""
    last_call: int = -1
    """The number of the newest call that it took part in."""

    @property
    def work(self) -> int:
        return self.num_steps * self.num_rows * self.num_pixels


@dataclass(frozen=True, slots=True)
class StepDecision:
    """One call for these drawings, all of one group."""

    group: Hashable
    drawing_ids: tuple[int, ...]
    num_rows: int
    is_express: bool = False


@dataclass(slots=True)
class _Account:
    """The service that a group has had. `credit_s` is the time that express calls may still
    take."""

    virtual_time_s: float
    credit_s: float | None = None
    """None before the first call; a group whose first call is shared has full credit."""


class StepScheduler:
    """Decides, one call at a time.

    Args:
        max_num_rows: the most rows of a call.
        max_pixels: the most pixels of all its rows together.
    """

    def __init__(self, max_num_rows: int, max_pixels: int) -> None:
        self._max_num_rows = max_num_rows
        self._max_pixels = max_pixels
        self._num_calls = 0
        self._entries: dict[int, Entry] = {}
        self._accounts: dict[Hashable, _Account] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Entry) -> None:
        """Add a drawing that is ready for its first step."""
        self._entries[entry.drawing_id] = entry

    def remove(self, drawing_id: int) -> None:
        """Remove a drawing that is finished or cancelled; unknown ids are ignored."""
        self._entries.pop(drawing_id, None)

    def update(self, drawing_id: int, *, num_rows: int) -> None:
        """Note the number of rows of a drawing's next step."""
        self._entries[drawing_id].num_rows = num_rows

    def schedule(self) -> StepDecision | None:
        """The next call, or None if no drawing waits."""
        groups: dict[Hashable, list[Entry]] = {}
        for entry in self._entries.values():
            groups.setdefault(entry.group, []).append(entry)
        if not groups:
            return None
        self._keep_accounts(groups)
        # Among equals the group that came first is served, as dicts keep their order.
        group = min(groups, key=lambda name: self._accounts[name].virtual_time_s)
        return self._decide(group, groups[group], self._accounts[group])

    def commit(self, decision: StepDecision, elapsed_s: float) -> None:
        """Charge a call's time to its group."""
        self._num_calls += 1
        for drawing_id in decision.drawing_ids:
            if drawing_id in self._entries:
                self._entries[drawing_id].last_call = self._num_calls
        account = self._accounts.get(decision.group)
        if account is None:
            return
        members = [e for e in self._entries.values() if e.group == decision.group]
        account.virtual_time_s += elapsed_s / _weight(members)
        most_s = EXPRESS_LEAD * elapsed_s
        if decision.is_express:
            account.credit_s = (account.credit_s or 0.0) - elapsed_s
        elif account.credit_s is None:
            account.credit_s = most_s
        else:
            account.credit_s = min(account.credit_s + elapsed_s, most_s)

    def _decide(self, group: Hashable, members: list[Entry], account: _Account) -> StepDecision:
        express = _express(members)
        is_express = bool(express) and (account.credit_s or 0.0) >= 0
        chosen = self._fill(express if is_express else members)
        num_rows = sum(entry.num_rows for entry in chosen)
        drawing_ids = tuple(entry.drawing_id for entry in chosen)
        return StepDecision(group, drawing_ids, num_rows, is_express)

    def _keep_accounts(self, groups: Iterable[Hashable]) -> None:
        """Open accounts for new groups at the present virtual time, so that idle time earns no
        credit."""
        known = [self._accounts[name].virtual_time_s for name in groups if name in self._accounts]
        now_s = min(known, default=0.0)
        self._accounts = {name: self._accounts.get(name) or _Account(now_s) for name in groups}

    def _fill(self, entries: Iterable[Entry]) -> list[Entry]:
        """As many drawings as fit, at least one: by priority, then by how long they have waited."""
        chosen: list[Entry] = []
        num_rows = 0
        for entry in sorted(entries, key=lambda entry: (entry.priority, entry.last_call)):
            num_rows += entry.num_rows
            too_many = num_rows > self._max_num_rows
            if chosen and (too_many or num_rows * entry.num_pixels > self._max_pixels):
                break
            chosen.append(entry)
        return chosen


def _express(members: Sequence[Entry]) -> list[Entry]:
    """The drawings of a group that are short compared with the others."""
    if len(members) < 2:
        return []
    total = sum(entry.work for entry in members)
    limit = EXPRESS_SHARE_OF_MEAN / (len(members) - 1)
    return [entry for entry in members if entry.work < limit * (total - entry.work)]


def _weight(entries: Sequence[Entry]) -> float:
    """A group's share of the time, which each level of priority doubles."""
    best = min((entry.priority for entry in entries), default=0)
    return float(2.0 ** -max(-_MAX_WEIGHT_EXPONENT, min(_MAX_WEIGHT_EXPONENT, best)))
