"""Routes that take a JSON body or a form, as the client declares."""

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from server.http.json_route import Handler, JsonRoute, declared_json, is_json
from server.http.multipart import Form, read_form


class FormRoute(JsonRoute):
    """Use as `APIRouter(route_class=FormRoute)`. A form reaches the body's model as a `Form`,
    which its before-validator must read; other bodies are read as `JsonRoute` does."""

    def get_route_handler(self) -> Handler:
        handle_json = super().get_route_handler()
        handle_form = super(JsonRoute, self).get_route_handler()

        async def handle(request: Request) -> Response:
            content_type = request.headers.get("content-type", "")
            if request.method != "POST" or is_json(content_type):
                return await handle_json(request)
            if not _is_form(content_type):
                raise HTTPException(
                    415,
                    "the body must be multipart/form-data or application/json; set "
                    "Content-Type to one of these",
                )
            form = await read_form(content_type, request.stream())
            return await handle_form(_FormRequest(request, form))

        return handle


class _FormRequest(Request):
    """A request whose form has been read. It is passed to FastAPI as JSON, so that the same model
    checks both."""

    def __init__(self, request: Request, form: Form) -> None:
        super().__init__(declared_json(request.scope), request.receive)
        self._form_content = form

    async def body(self) -> bytes:
        return b"form"

    async def json(self) -> Any:
        return self._form_content


def _is_form(content_type: str) -> bool:
    return content_type.split(";")[0].strip().lower() == "multipart/form-data"
