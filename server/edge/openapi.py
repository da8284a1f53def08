"""The OpenAPI 3.1 document of an application, made from its router.

Every route is in it because the router has it; a route without facts is described as far as the
router and the gate know it, and a test fails until it has its entry in `edge/api_facts.py`.
"""

import dataclasses
import inspect
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, Union, get_args, get_origin

from aiohttp import web

from server import __version__
from server.edge.api_facts import FACTS, Body, Facts
from server.edge.gate import PUBLIC, RULES, SERVER_CONTROL, Rule

PATH = "/api/openapi.json"
PROBLEM = {"$ref": "#/components/schemas/Problem"}
MEANINGS: Mapping[int, str] = {
    101: "The connection becomes a WebSocket",
    200: "Done",
    201: "Created",
    204: "Done, nothing to say",
    400: "Not what the route takes",
    401: "No valid key or token",
    403: "Not entitled, or a foreign origin",
    404: "No such thing, or not for this caller",
    406: "Nothing in the offer that can be sent",
    408: "The body came too slowly",
    409: "The name is taken, or the source is away",
    412: "If-Match names another state",
    413: "The body is over the limit",
    415: "Another content type",
    422: "Well formed, but cannot be served",
    428: "If-Match is wanted",
    429: "Over a rate or a count of this caller",
    503: "Full, busy or stopping",
}
SIMPLE: Mapping[Any, dict[str, Any]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    type(None): {"type": "null"},
    Any: {},
}


def openapi_routes(
    rules: Mapping[tuple[str, str], Rule] = RULES, facts: Mapping[tuple[str, str], Facts] = FACTS
) -> list[web.AbstractRouteDef]:
    """The route that serves the document of the application it is in."""

    made = ""

    async def openapi(request: web.Request) -> web.Response:
        """What routes there are, as OpenAPI 3.1."""
        nonlocal made
        # Once: 8 ms on the loop, for whoever asks. Routes do not change while the server runs.
        made = made or json.dumps(make_document(request.app, rules, facts))
        return web.Response(text=made, content_type="application/json")

    return [web.get(PATH, openapi)]


def make_document(
    app: web.Application,
    rules: Mapping[tuple[str, str], Rule] = RULES,
    facts: Mapping[tuple[str, str], Facts] = FACTS,
) -> dict[str, Any]:
    """The document as JSON takes it. Left out: OPTIONS and HEAD, and the page's files."""
    shapes = Shapes()
    paths: dict[str, dict[str, Any]] = {}
    for route in described(app):
        assert route.resource is not None
        path, method = route.resource.canonical, route.method
        rule = rules.get((method, path), SERVER_CONTROL)
        known = facts.get((method, path), Facts("other", {200: None}))
        operation = _operation(
            method, path, inspect.getdoc(route.handler) or "", rule, known, shapes
        )
        paths.setdefault(path, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Sightline", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": shapes.components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An API key or token"}
            },
        },
    }


def described(app: web.Application) -> list[web.AbstractRoute]:
    """The routes that belong into the document."""
    return [
        route
        for route in app.router.routes()
        if route.method not in ("HEAD", "OPTIONS")
        and not isinstance(route.resource, web.StaticResource)
    ]


class Shapes:
    """JSON schemas of our types. Classes become components, made when first named."""

    def __init__(self) -> None:
        self.components: dict[str, Any] = {
            "Problem": _object(
                {
                    "type": {"type": "string"},
                    "title": {"type": "string"},
                    "status": {"type": "integer"},
                    "detail": {"type": "string"},
                },
                ("type", "title", "status", "detail"),
            )
        }

    def of(self, shape: Any) -> dict[str, Any]:
        """The schema of an annotation."""
        if shape in SIMPLE:
            return dict(SIMPLE[shape])
        origin, parts = get_origin(shape), get_args(shape)
        if origin is NotRequired:
            return self.of(parts[0])
        if origin is Literal:
            return {"enum": list(parts)}
        if origin in (Union, types.UnionType):
            return {"anyOf": [self.of(part) for part in parts]}
        if isinstance(origin, type) and issubclass(origin, Mapping):
            return {"type": "object", "additionalProperties": self.of(parts[1])}
        if origin is tuple and Ellipsis not in parts:
            count = len(parts)
            schemas = [self.of(part) for part in parts]
            return {"type": "array", "prefixItems": schemas, "minItems": count, "maxItems": count}
        if isinstance(origin, type) and issubclass(origin, Sequence):
            return {"type": "array", "items": self.of(parts[0])}
        if dataclasses.is_dataclass(shape) or typing.is_typeddict(shape):
            return self._component(shape)
        raise TypeError(f"no schema for {shape!r}")

    def _component(self, shape: Any) -> dict[str, Any]:
        name = shape.__name__
        if name not in self.components:
            # Named before it is made, so that it may refer to itself.
            self.components[name] = {}
            hints = typing.get_type_hints(shape)
            if dataclasses.is_dataclass(shape):
                names = [field.name for field in dataclasses.fields(shape)]
                required: Sequence[str] = names
            else:
                names, required = list(hints), sorted(shape.__required_keys__)
            self.components[name] = _object({n: self.of(hints[n]) for n in names}, required)
        return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: dict[str, Any], required: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        found["required"] = list(required)
    return found | {"additionalProperties": False}


def _operation(
    method: str, path: str, doc: str, rule: Rule, facts: Facts, shapes: Shapes
) -> dict[str, Any]:
    summary, _, rest = doc.partition("\n\n")
    summary = re.sub(r"^`[A-Z]+ [^`]*`: ", "", " ".join(summary.split()))
    operation: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{method.lower()}{path}").strip("_"),
        "tags": [facts.tag],
        "summary": summary[:1].upper() + summary[1:],
    }
    scope = {"any": "any stream", "path": "this stream", "all": "all streams"}[rule.of]
    needs = f"Needs the scope `{rule.scope}` of {scope}." if rule.scope else ""
    if description := " ".join([*rest.split(), *needs.split()]):
        operation["description"] = description
    operation["security"] = [] if rule.public else [{"bearer": []}]
    parameters = [_parameter(name, "path", "") for name in re.findall(r"\{(\w+)", path)]
    parameters += [_parameter(name, "query", text) for name, text in facts.query.items()]
    if facts.takes is not None and 428 in facts.refusals:
        parameters.append(_parameter("If-Match", "header", "The ETag of the answer, or *"))
    if parameters:
        operation["parameters"] = parameters
    if facts.takes is not None:
        operation["requestBody"] = {"required": True, "content": _content(facts.takes, shapes)}
    operation["responses"] = _responses(path, rule, facts, shapes)
    return operation


def _parameter(name: str, where: str, text: str) -> dict[str, Any]:
    found = {"name": name, "in": where, "required": where == "path", "schema": {"type": "string"}}
    return found | ({"description": text} if text else {})


def _responses(path: str, rule: Rule, facts: Facts, shapes: Shapes) -> dict[str, Any]:
    responses: dict[int, dict[str, Any]] = {}
    for status, body in facts.answers.items():
        responses[status] = {"description": MEANINGS.get(status, "Done")}
        if body is not None:
            responses[status]["content"] = _content(body, shapes)
        if facts.headers and status < 300:
            responses[status]["headers"] = {
                name: {"schema": {"type": "string"}} for name in facts.headers
            }
    for status in refusals(path, rule, facts):
        if status not in responses:
            problem = {"application/problem+json": {"schema": PROBLEM}}
            responses[status] = {"description": MEANINGS[status], "content": problem}
    return {str(status): responses[status] for status in sorted(responses)}


def refusals(path: str, rule: Rule, facts: Facts) -> set[int]:
    """Statuses of problem bodies: what follows from the rule, the path and the body, and the
    route's own."""
    found = {403, 429, *facts.refusals}
    if rule is not PUBLIC:
        found.add(401)
    if "{" in path:
        found.add(404)
    if facts.takes is not None:
        found |= {400, 408, 413, 415}
    if facts.query:
        found.add(400)
    if rule.opens:
        found.add(503)
    return found


def _content(body: Body, shapes: Shapes) -> dict[str, Any]:
    return {body.content_type: {"schema": shapes.of(body.shape)}}
