"""What the OpenAPI document says of the image routes."""

from typing import Any

import pytest
from schemathesis import GenerationMode

from tests.helpers.server.fake_images import image_info
from tests.helpers.server.fake_texts import model_info
from tests.helpers.server.generated import send_generated
from tests.helpers.server.image_server import EDITS, GENERATIONS, VARIATIONS, ImageServer


async def document(server: ImageServer) -> dict[str, Any]:
    answer: dict[str, Any] = (await server.client.get("/openapi.json")).json()
    return answer


async def test_each_route_names_the_models_of_its_kind() -> None:
    schemas = (await document(ImageServer(image_info(), model_info("writer"))))["components"][
        "schemas"
    ]
    images = schemas["ImageGenerationRequest"]["properties"]
    assert images["model"]["anyOf"][0]["enum"] == ["painter", ""]
    assert images["scheduler"]["anyOf"][0]["enum"] == ["ddim", "euler", "dpmpp_2m", ""]
    assert images["priority"]["anyOf"][0]["enum"] == [0]
    chat = schemas["ChatCompletionRequest"]["properties"]
    assert chat["model"]["anyOf"][0]["enum"] == ["writer", ""]


async def test_a_server_without_image_models_has_a_document_too() -> None:
    schemas = (await document(ImageServer(model_info("writer"))))["components"]["schemas"]
    assert "model" not in schemas["ImageEditRequest"]["required"]


async def test_forms_and_json_are_described() -> None:
    paths = (await document(ImageServer()))["paths"]
    for path in (EDITS, VARIATIONS):
        content = paths[path]["post"]["requestBody"]["content"]
        assert content.keys() == {"application/json", "multipart/form-data"}
        form = content["multipart/form-data"]["schema"]
        assert form["properties"]["image"] == {"type": "string", "format": "binary"}
        assert "images" not in form["properties"]
    assert paths[GENERATIONS]["post"]["requestBody"]["content"].keys() == {"application/json"}
    for path in (GENERATIONS, EDITS, VARIATIONS):
        responses = paths[path]["post"]["responses"]
        assert {"200", "400", "401", "404", "413", "415", "429", "503"} <= responses.keys()
    assert {"get", "delete"} <= paths["/v1/images/{image_id}"].keys()


async def test_what_is_uploaded_is_not_described_as_json() -> None:
    schemas = (await document(ImageServer()))["components"]["schemas"]
    assert schemas["ImageReference"]["properties"].keys() == {"image_url", "file_id"}


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", GENERATIONS),
        ("POST", EDITS),
        ("POST", VARIATIONS),
        ("GET", "/v1/images/{image_id}"),
        ("DELETE", "/v1/images/{image_id}"),
        ("GET", "/v1/images/files/{name}"),
    ],
)
def test_generated_requests(method: str, path: str, mode: GenerationMode) -> None:
    """Nothing is a 5xx, and each answer has a documented status, type and schema."""
    if method != "POST" and mode is GenerationMode.NEGATIVE:
        return  # any text may be an id
    send_generated(ImageServer().app, path, method, mode=mode, num_examples=25)
