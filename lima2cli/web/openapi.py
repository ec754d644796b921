"""The description of the interface (OpenAPI 3.1), made from the table of routes."""

import re
from collections.abc import Iterable
from typing import Any

from lima2cli import __version__
from lima2cli.declare.plain import schema_of
from lima2cli.web.routes import JSON, PROBLEM, Route

REFUSED = {401: "the token is missing or wrong", 403: "the request comes from another site"}
"""Refusals of every route."""


def description(routes: Iterable[Route]) -> dict[str, Any]:
    """Return the description of all routes, as plain data."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "lima2",
            "version": __version__,
            "description": "Runs of lima2 on this machine, watched and driven.",
        },
        "paths": paths,
        "security": [{"bearer": []}, {"token": []}],
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "token": {"type": "apiKey", "in": "query", "name": "token"},
            },
            "schemas": {"Problem": PROBLEM_SCHEMA},
        },
    }


PROBLEM_SCHEMA = {
    "description": "Why a request was refused (RFC 9457).",
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "diagnostics": {
            "description": "The mistakes of a pipeline, as `lima2 validate --format json` lists them.",
            "type": "array",
            "items": {"type": "object"},
        },
    },
    "required": ["title", "status", "detail"],
}


def _operation(route: Route) -> dict[str, Any]:
    places = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", route.path)
    ]
    query = [{"name": one.name, "in": "query", "description": one.doc, "schema": one.schema} for one in route.query]
    responses = {
        str(route.status): {
            "description": route.gives,
            "content": {media: {"schema": _schema(media)} for media in route.media},
        }
    }
    for status, why in sorted({**REFUSED, **route.refuses}.items()):
        shown = {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}
        responses[str(status)] = {"description": why, "content": shown}
    operation: dict[str, Any] = {"operationId": route.name, "summary": route.doc, "responses": responses}
    if places or query:
        operation["parameters"] = places + query
    if route.body is not None:
        content: dict[str, Any] = {JSON: {"schema": schema_of(route.body)}}
        content |= {"application/yaml": {"schema": {"type": "string"}}} if route.text else {}
        operation["requestBody"] = {"content": content, "required": route.text}
    return operation


def _schema(media: str) -> dict[str, Any]:
    if media == JSON:
        return {"type": "object"}
    return {"type": "string"} if media.startswith("text/") else {}
