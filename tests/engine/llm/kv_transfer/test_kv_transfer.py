"""Prompts that one engine computes and another one continues, bit for bit."""

import secrets
import socket
import threading
import time
from dataclasses import replace

import pytest

from engine.contract.generate import KvLoan
from engine.errors import ModelLoadError
from engine.llm.kv_store import restoring
from engine.llm.kv_transfer import channel, lender
from engine.llm.kv_transfer.channel import Address, Channel, ChannelError
from tests.helpers.llm.logits import SIZES, VOCAB, alone, check_same_bits, logits_of, make_requests
from tests.helpers.llm.requests import texts

BLOCK = 16
WAIT_S = 60.0


@pytest.fixture(scope="module", params=["tiny_llama", "tiny_gemma3", "tiny_deepseek"])
def folder(request):
    """One group of layers; groups with windows; a key that is the value, too."""
    return request.getfixturevalue(request.param)(**SIZES)


@pytest.fixture(scope="module")
def llama(tiny_llama):
    return tiny_llama(seed=11)


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "key"
    path.write_text(secrets.token_hex(32))
    return path


@pytest.fixture
def opened(engines, key):
    """`opened(folder)` makes an engine that exchanges blocks; it is shut down in the end."""
    made = []

    def make(folder, digest="weights", **knobs):
        settings = {"kv_transfer": "127.0.0.1", "kv_transfer_key": str(key)}
        made.append(engines.make(folder, **(settings | knobs)))
        made[-1].identify(digest)
        return made[-1]

    yield make
    for engine in made:
        engine.shutdown()


def lend(engine, request):
    """Compute a prompt, and return the loan of its blocks."""
    engine.add(replace(request, sampling=replace(request.sampling, max_tokens=1), lends_kv=True))
    while True:
        for event in engine.step()[0]:
            if event.finish_reason is not None:
                return event.kv_loan


def borrowed(engine, request):
    """The request as a proxy sends it to the second worker."""
    return replace(request, kv_loan=lend(engine, request))


def counts(engine):
    return engine.stats().kv_transfer


def settle(engine):
    """Let an engine release what was fetched, and return how many blocks are held then."""
    end_s = time.monotonic() + WAIT_S
    while engine.tend_loans() is not None:
        assert time.monotonic() < end_s
        time.sleep(0.001)
    return engine.stats().kv_blocks_used


def prompt_of(rng, num_blocks):
    return [rng.randrange(VOCAB) for _ in range(num_blocks * BLOCK + 1)]


@pytest.mark.each_value
@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"kv_cache_dtype": "int8"},
        {"dtype": "bfloat16", "kv_cache_dtype": "fp8", "async_scheduling": "on"},
    ],
    ids=str,
)
def test_the_bits_are_those_of_one_engine(engines, folder, log, rng, opened, knobs):
    requests = make_requests(engines, rng, count=6, shared_prefix=rng.randrange(100))
    plain = {name: value for name, value in knobs.items() if name != "async_scheduling"}
    expected = logits_of(log, lambda: alone(engines, folder, requests, **plain))
    one, other = opened(folder, **knobs), opened(folder, **knobs, max_num_batched_tokens=64)
    asked = [borrowed(one, request) for request in requests]
    check_same_bits(log, lambda: engines.run(other, asked), expected)
    lent, fetched = counts(one), counts(other)
    assert lent.num_loans == sum(request.kv_loan is not None for request in asked) > 0
    assert 0 < fetched.num_blocks_fetched <= lent.num_blocks_sent
    assert fetched.num_fetches_failed == 0
    assert settle(one) == 0 and counts(one).num_loans_expired == 0


def test_everything_but_the_last_token_comes_from_the_lender(engines, llama, rng, opened):
    ask = engines.request("a", prompt_of(rng, 9), seed=rng.getrandbits(60), temperature=1.0)
    expected = texts(engines.run(engines.make(llama, enable_prefix_caching=False), [ask]))
    one, other = opened(llama), opened(llama)
    asked = borrowed(one, ask)
    assert asked.kv_loan.num_tokens == 9 * BLOCK == BLOCK * len(asked.kv_loan.block_ids[0])
    assert counts(one).num_blocks_lent == one.stats().kv_blocks_used == 9
    done = engines.run(other, [asked])
    assert texts(done) == expected and done["a", 0].num_cached_tokens == 9 * BLOCK
    again = engines.run(other, [replace(asked, request_id="b")])
    assert texts(again)["b", 0] == expected["a", 0], "it is cached, and the loan not needed"
    assert counts(other).num_fetches_failed == 0


def test_a_thousand_random_aborts_strand_no_block(engines, llama, rng, opened):
    few = {"num_kv_blocks": 40, "max_model_len": 20 * BLOCK, "kv_cache_memory_gib": None}
    one, other = opened(llama, kv_lease_duration=1.0, **few), opened(llama, **few)
    expected, num_aborts, number = {}, 0, 0
    prompts = [prompt_of(rng, rng.randrange(1, 7)) for _ in range(12)]
    alone = engines.make(llama, enable_prefix_caching=False)
    for index, prompt in enumerate(prompts):
        ask = engines.request(str(index), prompt, max_tokens=6, ignore_eos=True)
        expected |= texts(engines.run(alone, [ask]))
    loans: dict[str, tuple[int, KvLoan]] = {}
    running, found = {one: {}, other: {}}, {}
    while num_aborts < 1000:
        index = rng.randrange(len(prompts))
        ask = engines.request(str(number), prompts[index], max_tokens=6, ignore_eos=True)
        if rng.random() < 0.5 or not loans:
            engine, ask = one, replace(ask, lends_kv=True)
        else:
            index, loan = loans.pop(rng.choice([*loans]))
            engine, ask = other, replace(ask, prompt_token_ids=prompts[index], kv_loan=loan)
        number += 1
        engine.add(ask)
        running[engine][ask.request_id] = index
        if rng.random() < 0.1:  # so that blocks are fetched for it anew
            other.reset_prefix_cache()
        for engine, ids in running.items():
            for _ in range(rng.randrange(4)):
                for event in engine.step()[0]:
                    found.setdefault(event.request_id, []).extend(event.token_ids)
                    if event.finish_reason is None:
                        continue
                    assert event.failure is None
                    index = ids.pop(event.request_id)
                    assert found.pop(event.request_id) == expected[str(index), 0]
                    if event.kv_loan is not None:
                        loans[event.request_id] = index, event.kv_loan
            while len(ids) > rng.randrange(1, 6):
                doomed = rng.choice([*ids])
                engine.abort(doomed)
                del ids[doomed]
                found.pop(doomed, None)
                num_aborts += 1
    for engine, ids in running.items():
        for request_id in ids:
            engine.abort(request_id)
    wait_for(lambda: not (one.has_work() or other.has_work()), one, other)
    assert settle(one) == settle(other) == 0
    assert counts(other).num_blocks_fetched and counts(one).num_loans > 100
    for engine in (one, other):
        engine.step()  # checks all counts of blocks


def wait_for(is_so, *engines):
    end_s = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < end_s
        for engine in engines:
            engine.step()


def test_an_aborted_borrower_ends_the_loan(engines, llama, rng, opened):
    one, other = opened(llama), opened(llama)
    for steps in range(3):
        other.add(borrowed(one, engines.request("a", prompt_of(rng, 5))))
        for _ in range(steps):
            other.step()
        other.abort("a")
        assert settle(one) == 0
    assert counts(one).num_loans == 3 and counts(one).num_loans_expired == 0


def foreign(opened, llama, tiny_llama, tmp_path):
    other_key = tmp_path / "other"
    other_key.write_text(secrets.token_hex(32))
    yield {"digest": "other weights"}, "other weights, code, settings"
    yield {"folder": tiny_llama(seed=11, rope_theta=5000.0)}, "other weights, code, settings"
    yield {"kv_cache_dtype": "int8"}, "other weights, code, settings"
    yield {"kv_transfer_key": str(other_key)}, "same kv_transfer_key"


def test_what_others_computed_is_refused_by_name(
    engines, llama, tiny_llama, rng, opened, tmp_path, capsys
):
    one = opened(llama)
    ask = engines.request("a", prompt_of(rng, 4))
    for number, (facts, reason) in enumerate(foreign(opened, llama, tiny_llama, tmp_path)):
        other = opened(**({"folder": llama} | facts))
        plain = engines.make(
            facts.get("folder", llama), kv_cache_dtype=facts.get("kv_cache_dtype", "auto")
        )
        expected = texts(engines.run(plain, [ask]))
        capsys.readouterr()
        assert texts(engines.run(other, [borrowed(one, ask)])) == expected
        assert reason in capsys.readouterr().out
        assert counts(other).num_fetches_failed == 1 and counts(other).num_blocks_fetched == 0
        assert counts(one).num_blocks_lent == 4 * (number + 1), "loans wait for their time to end"


def test_a_loan_of_another_salt_or_prompt_gives_nothing(engines, llama, rng, opened):
    one, other = opened(llama), opened(llama)
    mine = borrowed(one, engines.request("a", prompt_of(rng, 4), cache_salt="mine"))
    for changed in ({"cache_salt": "yours"}, {"prompt_token_ids": prompt_of(rng, 4)}):
        asked = replace(mine, **changed, kv_loan=lend(one, mine))
        done = engines.run(other, [asked])
        assert done["a", 0].num_cached_tokens == 0
    assert counts(other).num_fetches_failed == 2 and counts(other).num_blocks_fetched == 0


def test_clients_cannot_send_it_elsewhere(engines, llama, rng, opened):
    """The address in a loan is the one that its lender wrote."""
    one, other = opened(llama), opened(llama)
    asked = borrowed(one, engines.request("a", prompt_of(rng, 4)))
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        port = elsewhere.getsockname()[1]
        for changed in ({"port": port}, {"host": "localhost"}, {"ticket": "ab"}, {"ticket": "x"}):
            moved = replace(asked, kv_loan=replace(asked.kv_loan, **changed))
            engines.run(other, [moved])
            other.reset_prefix_cache()
        elsewhere.setblocking(False)
        with pytest.raises(BlockingIOError):
            elsewhere.accept()
    assert counts(other).num_fetches_failed == 4


def test_blocks_changed_on_their_way_are_refused(engines, llama, rng, opened, monkeypatch):
    ask = engines.request("a", prompt_of(rng, 8))
    expected = texts(engines.run(engines.make(llama), [ask]))
    one, other = opened(llama), opened(llama)
    asked, num_whole = borrowed(one, ask), rng.randrange(8)
    real_send, num_sent = channel._send, 0

    def send(connection, data):
        nonlocal num_sent
        if len(data) == one._transfer.loans._memory.block_bytes:
            num_sent += 1
            if num_sent > num_whole:
                data = bytearray(data)
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        real_send(connection, data)

    monkeypatch.setattr(channel, "_send", send)
    done = engines.run(other, [asked])
    assert texts(done) == expected and done["a", 0].num_cached_tokens == num_whole * BLOCK
    assert counts(other).num_fetches_failed == 1


def test_a_lender_that_hangs_delays_only_who_waits_for_it(engines, llama, rng, opened, monkeypatch):
    ask = engines.request("a", prompt_of(rng, 8))
    expected = texts(engines.run(engines.make(llama), [ask]))
    one, other = opened(llama), opened(llama)
    monkeypatch.setattr(restoring, "_PATIENCE_S", 0.4)
    goes_on = threading.Event()
    real_lend = lender.Lender._lend

    def hang(*arguments):
        goes_on.wait(WAIT_S)
        return real_lend(*arguments)

    monkeypatch.setattr(lender.Lender, "_lend", hang)
    other.add(borrowed(one, ask))
    other.add(engines.request("b", prompt_of(rng, 3), max_tokens=5))
    ended, found = [], []
    while other.has_work():
        for event in other.step()[0]:
            found += event.token_ids if event.request_id == "a" else []
            ended += [event.request_id] if event.finish_reason else []
    goes_on.set()
    assert ended == ["b", "a"] and found == expected["a", 0]


def test_a_lender_that_is_gone_costs_time_only(engines, llama, rng, opened):
    ask = engines.request("a", prompt_of(rng, 8))
    expected = texts(engines.run(engines.make(llama), [ask]))
    one, other = opened(llama), opened(llama)
    asked = borrowed(one, ask)
    one.shutdown()
    assert texts(engines.run(other, [asked])) == expected
    assert counts(other).num_fetches_failed == 1


def test_strangers_learn_nothing(llama, opened, rng, engines):
    one = opened(llama)
    loan = lend(one, engines.request("a", prompt_of(rng, 4)))
    at = (loan.host, loan.port)
    with socket.create_connection(at) as connection, pytest.raises(ChannelError):
        Channel.borrow(connection, secrets.token_bytes(32))
    with socket.create_connection(at) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n".ljust(100))
        assert len(connection.recv(40, socket.MSG_WAITALL)) == 40  # the greeting
        with pytest.raises(ConnectionError):
            assert not connection.recv(1)
            raise ConnectionResetError
    assert counts(one).num_blocks_lent == 4 and counts(one).num_blocks_sent == 0


def test_adapters_and_scores_of_prompts_are_computed_where_they_are_asked(
    engines, llama, rng, opened
):
    one, other = opened(llama), opened(llama)
    ask = engines.request("a", prompt_of(rng, 4), prompt_logprobs=1)
    done = engines.run(
        other, [replace(ask, kv_loan=lend(one, engines.request("a", ask.prompt_token_ids)))]
    )
    assert len(done["a", 0].prompt_logprobs) == len(ask.prompt_token_ids)
    assert counts(other).num_blocks_fetched == 0


def test_loans_are_limited_in_number_and_yield_to_texts(engines, llama, rng, opened):
    """Half of the blocks are lent at most, and a text that needs more than the rest gets them."""
    few = {"num_kv_blocks": 20, "max_model_len": 19 * BLOCK, "kv_cache_memory_gib": None}
    one = opened(llama, **few)
    loans = [lend(one, engines.request(str(n), prompt_of(rng, 4))) for n in range(3)]
    assert loans[:2].count(None) == 0 and loans[2] is None
    assert counts(one).num_loans_refused == 1 and counts(one).num_blocks_lent == 8
    ask = engines.request("long", prompt_of(rng, 16), max_tokens=20, ignore_eos=True)
    expected = texts(engines.run(engines.make(llama), [ask]))
    assert texts(engines.run(one, [ask])) == expected
    assert counts(one).num_loans_withdrawn == 2 and settle(one) == 0


def test_a_new_pool_lends_nothing_of_the_old_one(engines, llama, rng, opened):
    one, other = opened(llama), opened(llama)
    ask = engines.request("a", prompt_of(rng, 4))
    expected = texts(engines.run(engines.make(llama), [ask]))
    asked = borrowed(one, ask)
    one._scheduler.start_over()
    assert one.stats().kv_blocks_used == 0 and counts(one).num_loans_withdrawn == 1
    assert texts(engines.run(other, [asked])) == expected
    assert counts(other).num_fetches_failed == 1 and counts(one).num_blocks_sent == 0


@pytest.mark.parametrize(
    ("knobs", "reason"),
    [
        ({"enable_prefix_caching": False}, "enable_prefix_caching is off"),
        ({"kv_transfer_key": None}, "openssl rand"),
        ({"kv_transfer_key": "/nowhere"}, "cannot be read"),
        ({"kv_transfer": "0.0.0.0:0"}, "no address that others can connect to"),
        ({"kv_transfer": "127.0.0.1:http"}, "HOST:PORT"),
        ({"kv_transfer": "192.0.2.1"}, "the address cannot be used"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_at_the_start(llama, opened, knobs, reason):
    with pytest.raises(ModelLoadError, match=reason) as caught:
        opened(llama, **knobs)
    assert "/nowhere" not in caught.value.message


def test_recurrent_states_are_refused_by_name(opened, tiny_mamba):
    with pytest.raises(ModelLoadError, match="recurrent states"):
        opened(tiny_mamba())


def test_each_takes_the_next_free_port(llama, opened, rng, engines):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ask = engines.request("a", prompt_of(rng, 1))
        ports = [lend(opened(llama, kv_transfer=f"127.0.0.1:{port}"), ask).port for _ in range(2)]
    assert port < ports[0] < ports[1] < port + 64


def test_a_ticket_is_of_its_address_and_key():
    address = Address("h", 1, "e", secrets.token_bytes(32))
    name = secrets.token_bytes(16)
    loan = address.loan(name, 16, [[1]])
    assert channel.loan_name(loan, address.key) == name
    for changed in ({"host": "i"}, {"port": 2}, {"engine_id": "f"}, {"ticket": loan.ticket[:-2]}):
        with pytest.raises(ChannelError):
            channel.loan_name(replace(loan, **changed), address.key)
    with pytest.raises(ChannelError):
        channel.loan_name(loan, secrets.token_bytes(32))
