"""Which server takes which request, as Ray's request router asks."""

import json
import random
import secrets

from server.ray_serve.affinity import home_of
from server.ray_serve.assignments import Assignments


def text(num_chars: int) -> str:
    return "".join(random.choices("abcdefgh ", k=num_chars))


def prompt(content: str) -> bytes:
    return json.dumps({"model": "m", "prompt": content}).encode()


def servers(number: int) -> tuple[Assignments, list[str]]:
    assignments, names = Assignments(), [secrets.token_hex(4) for _ in range(number)]
    assignments.set_servers(names)
    return assignments, names


def test_requests_that_come_at_once_are_spread():
    assignments, names = servers(3)
    bodies = [b"", b"--x--", *(prompt(text(20)) for _ in range(7))]
    first = [assignments.choose(f"{i}", "/x", body, names)[0] for i, body in enumerate(bodies)]
    assert sorted(first.count(name) for name in names) == [3, 3, 3]


def test_a_conversation_stays_unless_its_server_has_too_much_to_do():
    assignments, names = servers(2)
    begin = text(3000)
    [home, other] = assignments.choose("a", "/x", prompt(begin), names)
    assignments.end("a", is_answered=True)
    for i in range(4):
        assert assignments.choose(f"b{i}", "/x", prompt(begin + text(300)), names)[0] == home
        assignments.end(f"b{i}", is_answered=True)
    taken = [assignments.choose(f"c{i}", "/x", prompt(begin), names)[0] for i in range(100)]
    assert taken[0] == home and other in taken


def test_an_id_goes_to_the_server_that_made_it_while_it_is_there():
    assignments, names = servers(4)
    wanted = random.choice(names)
    path = f"/v1/responses/resp_{secrets.token_hex(12)}{home_of(wanted)}"
    for i in range(8):
        assert assignments.choose(f"{i}", path, b"", names) == [wanted]
    rest = [name for name in names if name != wanted]
    assert set(assignments.choose("next", path, b"", rest)) == set(rest)


def test_only_running_requests_count():
    assignments, names = servers(2)
    busy, idle = assignments.choose("a", "/x", b"", names)
    assert assignments.choose("a", "/x", b"", names)[0] in names  # Ray asks again for the same one
    assignments.correct("a", idle)  # and then has it taken by another than the first
    assert assignments.choose("b", "/x", b"", names)[0] == busy
    for request in ("a", "b", "b", "unknown"):
        assignments.end(request)
    first = [assignments.choose(f"{i}", "/x", b"", names)[0] for i in range(2)]
    assert set(first) == set(names)


def test_servers_that_are_gone_are_forgotten_with_their_requests():
    assignments, names = servers(2)
    begin = text(3000)
    home, other = assignments.choose("a", "/x", prompt(begin), names)
    assignments.lose(home)
    assignments.set_servers([other])
    assignments.end("a", is_answered=True)
    assignments.lose(home)
    new = secrets.token_hex(4)
    assignments.set_servers([other, new])
    assert set(assignments.choose("b", "/x", prompt(begin), [other, new])) == {other, new}
    assert assignments.choose("c", "/x", b"", []) == []
