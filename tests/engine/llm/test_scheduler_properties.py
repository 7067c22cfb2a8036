"""Random arrivals, cancels, forks, preemptions, shared prefixes, budgets: nobody notices.

Whatever the load, every completion gets exactly the tokens and scores it would get alone, no step
breaks an invariant, and at the end every block is free or idle in the cache.
"""

from tests.helpers.llm.sessions import EVERYTHING, Session, run_sessions


def test_any_load_gives_every_request_its_own_answer() -> None:
    seen = run_sessions(Session, 60)
    assert seen.keys() >= EVERYTHING | {"windows that moved"}, (
        "the sessions did not reach everything they are to test"
    )
