"""The service's errors in OpenAI's format, `{"error": {message, type, param, code}}`."""

import re
from collections.abc import Sequence
from typing import Any, NoReturn

from fastapi import APIRouter, FastAPI
from starlette.routing import BaseRoute, Route
from vold_proto.v1 import status_pb2
from vold_service.errors import HTTP_STATUS, ServiceError

TYPES: dict[int, str] = {
    status_pb2.UNAUTHENTICATED: "authentication_error",
    status_pb2.PERMISSION_DENIED: "permission_error",
    status_pb2.RESOURCE_EXHAUSTED: "rate_limit_error",
    status_pb2.DEADLINE_EXCEEDED: "timeout_error",
    status_pb2.UNAVAILABLE: "service_unavailable_error",
    status_pb2.INTERNAL: "server_error",
}

# The teacher's field names, and the names that callers of these routes know.
OPENAI_NAMES = (
    (re.compile(r"\boptions\.stop_ids\b"), "stop_token_ids"),
    (re.compile(r"\boptions\."), ""),
    (re.compile(r"\b(?:prompts|completions)\[(\d+)\](?:\.ids)?"), r"prompt[\1]"),
)


def raise_status(status: status_pb2.Status) -> NoReturn:
    """Raise the status of a failed part of a reply: on these routes one failed part fails the request."""
    raise ServiceError(
        status.code, status.message, field=status.field, retry_seconds=status.retry_seconds, reason=status.reason
    )


def with_openai_names(text: str) -> str:
    """`text` with these routes' field names in place of the teacher's."""
    for pattern, name in OPENAI_NAMES:
        text = pattern.sub(name, text)
    return text


def _paths(routes: Sequence[BaseRoute]) -> set[str]:
    return {route.path for route in routes if isinstance(route, Route)}


def error_body(error: ServiceError) -> dict[str, Any]:
    param = with_openai_names(error.field)
    code: str = status_pb2.Code.Name(error.code).lower()
    if error.code == status_pb2.NOT_FOUND and param == "model":
        code = "model_not_found"
    body = {
        "message": with_openai_names(error.message),
        "type": TYPES.get(error.code, "invalid_request_error"),
        "param": re.sub(r"\[.*", "", param) or None,
        "code": code,
    }
    if error.code == status_pb2.RESOURCE_EXHAUSTED:
        body["reason"] = error.reason  # "quota" or "queue_full": the code is one for both
    return {"error": body}


class OpenAIErrors:
    """Errors in OpenAI's format on its and vLLM's routes, and on paths under /v1 that are no route of the service: an
    OpenAI client asks for those.
    """

    def __init__(self, app: FastAPI, router: APIRouter) -> None:
        """router: of OpenAI's and vLLM's routes."""
        self._app = app
        self._router = router

    def has(self, path: str) -> bool:
        if path in _paths(self._router.routes):
            return True
        return path.startswith("/v1/") and path not in _paths(self._app.routes)

    def write(self, error: ServiceError) -> tuple[int, dict[str, Any]]:
        """As with OpenAI, the status of a bad request is 400; the service's own routes use 422."""
        status = 400 if error.code == status_pb2.INVALID_ARGUMENT else HTTP_STATUS[error.code]
        return status, error_body(error)
