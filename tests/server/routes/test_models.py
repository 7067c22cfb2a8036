"""`GET /v1/models` and `GET /v1/models/{id}`."""

import random
from dataclasses import replace
from pathlib import Path

from engine.contract.status import Phase
from server.text.reply import ReplyHead, system_fingerprint
from tests.helpers.server.fake_images import image_info
from tests.helpers.server.fake_server import error_of
from tests.helpers.server.fake_texts import model_info
from tests.helpers.server.text_server import MAX_MODEL_LEN, MODEL, TextServer, text_info

CARD = {
    "id": MODEL,
    "object": "model",
    "created": 1_700_000_000,
    "max_model_len": MAX_MODEL_LEN,
    "root": MODEL,
    "owned_by": "tandem",
    "parent": None,
    "input_modalities": ["text"],
    "default_sampling": {},
}


async def test_list(server: TextServer) -> None:
    answer = (await server.client.get("/v1/models")).json()
    assert answer == {"object": "list", "data": [CARD]}


async def test_a_models_own_sampling_is_shown(tokenizer_folder: Path) -> None:
    own = {"temperature": round(random.uniform(0, 2), 3), "top_k": float(random.randint(1, 99))}
    server = TextServer(tokenizer_folder, text_info(tokenizer_folder, default_sampling=own))
    [card] = (await server.client.get("/v1/models")).json()["data"]
    assert card == CARD | {"default_sampling": own}


async def test_ids_may_hold_slashes(server: TextServer) -> None:
    assert (await server.client.get(f"/v1/models/{MODEL}")).json() == CARD
    assert (await server.client.get("/v1/models/org%2Ftiny")).json() == CARD


async def test_unknown_models_name_the_known_ones(server: TextServer) -> None:
    for model in ("nope", "org", "org/tiny/x", "ORG/TINY"):
        error = error_of(await server.client.get(f"/v1/models/{model}"), 404)
        assert error["code"] == "model_not_found"
        assert MODEL in error["message"]
    assert (await server.client.get("/v1/models/")).status_code == 400


async def test_only_what_can_be_asked_is_listed(tokenizer_folder: Path) -> None:
    infos = [text_info(tokenizer_folder, name) for name in ("a", "b")]
    server = TextServer(tokenizer_folder, *infos)
    server.engine.set_status("b", Phase.LOADING)
    listed = (await server.client.get("/v1/models")).json()["data"]
    assert [card["id"] for card in listed] == ["a"]
    error = error_of(await server.client.get("/v1/models/b"), 503)
    assert error["code"] == "model_not_ready"


async def test_unknown_models_name_those_that_serve_of_any_kind(tokenizer_folder: Path) -> None:
    infos = [text_info(tokenizer_folder, name) for name in ("good", "broken", "slow")]
    server = TextServer(tokenizer_folder, *infos)
    server.engine.set_status("broken", Phase.FAILED)
    server.engine.set_status("slow", Phase.LOADING)
    server.engine.serve(image_info("painter"))
    message = (await server.chat(model="nope")).json()["error"]["message"]
    assert message.endswith("use one of: good, painter (draws images)")
    server.engine.set_status("good", Phase.FAILED)
    server.engine.set_status("painter", Phase.FAILED)
    message = (await server.chat(model="nope")).json()["error"]["message"]
    assert message.endswith("no model serves yet; see GET /ready")


async def test_a_failed_model_is_none_to_choose_from(tokenizer_folder: Path) -> None:
    infos = [text_info(tokenizer_folder, name) for name in ("good", "broken")]
    server = TextServer(tokenizer_folder, *infos)
    assert (await server.chat(model=None)).status_code == 400
    server.engine.set_status("broken", Phase.FAILED)
    assert (await server.chat(model=None)).status_code == 200


async def test_nothing_tells_where_a_model_lies(server: TextServer) -> None:
    assert str(server.folder) not in (await server.client.get("/v1/models")).text


def test_fingerprints_tell_models_and_configurations_apart() -> None:
    prints = {system_fingerprint(*pair) for pair in [("a", "1"), ("a", "2"), ("b", "1")]}
    assert len(prints) == 3
    assert system_fingerprint("a", "1") in prints


def test_fingerprints_tell_files_apart() -> None:
    info = model_info(digest="1", adapters=("poet", "judge"))
    infos = [
        info,
        replace(info, digest="2"),
        info.named("poet"),
        replace(info, adapter_digests={"poet": "3"}).named("poet"),
        replace(info, digest="2", adapter_digests={"poet": "3"}).named("poet"),
    ]
    prints = [ReplyHead.create("x", one).system_fingerprint for one in infos if one is not None]
    assert len(set(prints)) == len(infos)
    # Of an adapter that has no part in the answer.
    other = replace(info, adapter_digests={"judge": "4"}).named("poet")
    assert other is not None
    assert ReplyHead.create("x", other).system_fingerprint == prints[2]
