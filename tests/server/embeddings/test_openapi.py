"""What the OpenAPI document allows of the routes of embedding models is mostly answered."""

from pathlib import Path

import pytest

from tests.helpers.server.embedding_server import EmbeddingServer
from tests.helpers.server.generated import send_generated

ROUTES = ("/v1/embeddings", "/pooling", "/embedding", "/v1/rerank", "/v1/score", "/v1/groundedness")


@pytest.mark.slow
@pytest.mark.parametrize("path", ROUTES)
def test_generated_requests(tokenizer_folder: Path, path: str) -> None:
    app = EmbeddingServer(tokenizer_folder).app
    # A rerank request in another server's form gets that server's list, which is not documented.
    statuses, _ = send_generated(app, path, num_examples=60, is_documented=False)
    # Two of three are, so that fewer than a third of so many come once in millions of runs.
    assert statuses[200] >= 0.34 * statuses.total(), statuses
