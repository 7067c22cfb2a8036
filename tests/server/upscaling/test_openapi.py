"""What the OpenAPI document says of enlarging."""

from typing import Any

import pytest
from schemathesis import GenerationMode

from tests.helpers.server.fake_images import upscaler_info
from tests.helpers.server.generated import send_generated
from tests.helpers.server.image_server import data_url, png
from tests.helpers.server.upscaling_server import UPSCALE_PATH, UpscalingServer


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
    image = data_url(png())

    def with_image(case: Any) -> None:
        if mode is GenerationMode.POSITIVE and case.media_type == "application/json":
            case.body["image"] = image

    send_generated(UpscalingServer().app, UPSCALE_PATH, mode=mode, change=with_image)
