"""What the OpenAPI document says of enlarging."""

from typing import Any

import hypothesis
import pytest
import schemathesis
from image_server import data_url, png
from schemathesis import GenerationMode
from upscaling_server import UPSCALE_PATH, UpscalingServer, upscaler_info


async def test_it_describes_both_bodies_and_names_the_models() -> None:
    server = UpscalingServer(upscaler_info("a"), upscaler_info("b"))
    document: dict[str, Any] = (await server.client.get("/openapi.json")).json()
    schema = document["components"]["schemas"]["UpscaleImageRequest"]["properties"]
    assert schema["model"]["enum"] == ["a", "b"]
    operation = document["paths"][UPSCALE_PATH]["post"]
    content = operation["requestBody"]["content"]
    assert content.keys() == {"application/json", "multipart/form-data"}
    form = content["multipart/form-data"]["schema"]
    assert form["properties"].keys() == schema.keys()
    assert form["properties"]["image"] == {"type": "string", "format": "binary"}
    assert form["required"] == ["image"]
    responses = operation["responses"]
    assert {"200", "400", "401", "404", "413", "415", "429", "499", "503"} <= responses.keys()
    assert responses["200"]["content"].keys() == {"application/json", "text/event-stream"}


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_generated_requests(mode: GenerationMode) -> None:
    """Nothing is a 5xx, and each answer has a documented status, type and schema; with a real image
    some are answered."""
    server = UpscalingServer()
    schema = schemathesis.openapi.from_asgi("/openapi.json", server.app)
    strategy = schema[UPSCALE_PATH]["POST"].as_strategy(generation_mode=mode)
    checks = [
        schemathesis.checks.not_a_server_error,
        *schemathesis.checks.CHECKS.get_by_names(
            ["status_code_conformance", "content_type_conformance", "response_schema_conformance"]
        ),
    ]
    image = data_url(png())

    @hypothesis.settings(
        max_examples=40,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=strategy)
    def run(case: Any) -> None:
        if mode is GenerationMode.POSITIVE and case.media_type == "application/json":
            case.body["image"] = image
        response = case.call(timeout=60)
        case.validate_response(response, checks=checks)

    run()
