"""The OpenAPI document is true: of every route, and of what a real server answers."""

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web
from jsonschema import Draft202012Validator

from server.edge.api_facts import FACTS
from server.edge.gate import RULES
from server.edge.openapi import PATH, described, make_document
from tests.gate.guarded import ADMIN, Guarded, guarded, guarded_settings
from tests.gateway.offers import FFMPEG, VIEWER
from tests.serving import Caller

pytestmark = pytest.mark.service

Document = dict[str, Any]


def test_a_route_without_facts_is_described_and_named() -> None:
    async def bare(request: web.Request) -> web.Response:
        """A route that somebody adds."""
        return web.Response()

    app = web.Application()
    app.add_routes([web.get("/bare/{stream}", bare)])
    operation = make_document(app)["paths"]["/bare/{stream}"]["get"]
    assert operation["summary"] == "A route that somebody adds."
    assert operation["parameters"][0]["name"] == "stream"
    assert {"401", "403", "404"} <= set(operation["responses"])


async def test_every_route_has_its_entry_and_every_entry_a_route() -> None:
    async with guarded() as server:
        routes = {
            (route.method, route.resource.canonical)
            for route in described(server.app)
            if route.resource is not None
        }
        document = await read_document(server)
    missing, stale = routes - set(FACTS), set(FACTS) - routes
    assert not missing, f"add an entry to FACTS in server/edge/api_facts.py for {sorted(missing)}"
    assert not stale, f"FACTS in server/edge/api_facts.py still names {sorted(stale)}"
    in_document = {
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method in operations
    }
    assert in_document == routes
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], f"the handler of {method.upper()} {path} has no docstring"
            public = RULES[method.upper(), path].public
            assert operation["security"] == ([] if public else [{"bearer": []}])


async def test_the_document_is_well_formed() -> None:
    async with guarded() as server:
        document = await read_document(server)
    assert document["openapi"].startswith("3.1.")
    names = [
        operation["operationId"]
        for operations in document["paths"].values()
        for operation in operations.values()
    ]
    assert len(names) == len(set(names))
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    found = set(references(document))
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert found <= known


async def test_answers_of_a_real_server_are_as_the_document_says() -> None:
    async with guarded(guarded_settings(session={"max_sessions": 4}), ADMIN) as server:
        document = await read_document(server)
        caller = Caller()
        try:
            body = await caller.offer(stream="front")
            status, answer = await checked(server, document, "POST", "/offer", json=body)
            assert status == 200
            known = {"stream": "front", "id": answer["session"]}
            # Whatever GET there is and can be asked about this call and this stream.
            asked = 0
            for path, operations in document["paths"].items():
                if "get" in operations and answers_json(operations["get"]):
                    asked += await checked_where_known(server, document, path, known)
            assert asked >= 8
            options = {"options": {"confidence": 0.5}}
            session = "/sessions/{id}"
            await checked(server, document, "PATCH", session, known, json=options)
            await checked(server, document, "DELETE", session, known)
        finally:
            await caller.close()


async def test_refusals_of_a_real_server_are_as_the_document_says() -> None:
    sdp = {"Content-Type": "application/sdp"}
    async with guarded(guarded_settings(), ADMIN) as server:
        document = await read_document(server)
        whip, whep, known = "/whip/{stream}", "/whep/{stream}", {"stream": "front", "id": "none"}
        ask: list[tuple[str, str, dict[str, Any], int]] = [
            ("POST", "/offer", {"json": []}, 400),
            ("POST", "/offer", {"data": "x"}, 415),
            ("POST", "/offer", {"json": {"sdp": "v=0", "type": "offer"}}, 422),
            ("GET", "/sessions/{id}", {}, 404),
            ("POST", whip, {"data": FFMPEG, "headers": sdp}, 201),
            ("POST", whip, {"data": FFMPEG, "headers": sdp}, 409),
            ("POST", whip, {"data": "x", "headers": sdp}, 400),
            ("POST", whep, {"data": VIEWER, "headers": sdp}, 201),
            ("POST", whep, {"data": VIEWER.replace("H264/", "AV1/").replace("VP8/", "AV2/"),
                            "headers": sdp}, 406),
            ("PATCH", "/whep/{stream}/{id}", {"data": "x"}, 404),
            ("GET", whep, {}, 204),
            ("PUT", "/api/model", {"json": {"model": "nowhere"}}, 404),
            ("POST", "/api/tokens", {"json": {"scopes": ["view"]}}, 201),
            ("POST", "/api/tokens", {"json": {"scopes": 1}}, 400),
            ("POST", "/api/tickets", {}, 201),
            ("DELETE", "/api/tokens/{token}", {}, 200),
        ]  # fmt: skip
        for method, path, more, wanted in ask:
            status, body = await checked(
                server, document, method, path, known | {"token": "some"}, **more
            )
            assert status == wanted, (method, path, body)
        headers = {"Authorization": "Bearer wrong"}
        status, _ = await checked(server, document, "GET", "/api/stats", headers=headers)
        assert status == 401


# --- how an answer is held to the document ---


async def read_document(server: Guarded) -> Document:
    status, document = await server.ask("GET", PATH)
    assert status == 200
    return document


def answers_json(operation: dict[str, Any]) -> bool:
    return "application/json" in operation["responses"].get("200", {}).get("content", {})


async def checked_where_known(
    server: Guarded, document: Document, path: str, known: dict[str, str]
) -> bool:
    """Ask and check, where all parameters of the path are known."""
    if "{" in path.format_map(dict.fromkeys(known, "") | Braces()):
        return False
    await checked(server, document, "GET", path, known)
    return True


class Braces(dict[str, str]):
    """Leaves parameters that are not known as they are."""

    def __missing__(self, name: str) -> str:
        return "{"


async def checked(
    server: Guarded,
    document: Document,
    method: str,
    path: str,
    known: dict[str, str] | None = None,
    **more: Any,
) -> tuple[int, Any]:
    """One request; its answer must be one that the document tells of."""
    where = f"{method} {path}"
    url = server.url + path.format_map(known or {})
    async with asyncio.timeout(20), server.http.request(method, url, **more) as reply:
        text = await reply.text()
    responses = document["paths"][path][method.lower()]["responses"]
    assert str(reply.status) in responses, f"{where}: {reply.status} is not documented: {text}"
    told = responses[str(reply.status)]
    for name in told.get("headers", {}):
        assert name == "Link" or name in reply.headers, f"{where}: no {name}"
    if not told.get("content"):
        assert not text, f"{where}: {reply.status} has a body that is not documented"
        return reply.status, None
    assert reply.content_type in told["content"], f"{where}: {reply.content_type}"
    if not reply.content_type.endswith("json"):
        return reply.status, text
    body = json.loads(text)
    # References of the document begin at its root, where this schema takes the place.
    schema = told["content"][reply.content_type]["schema"]
    validator = Draft202012Validator(schema | {"components": document["components"]})
    errors = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(body)]
    assert not errors, f"{where} answers what is not documented: {errors[:5]}"
    return reply.status, body


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if "$ref" in value else []
        return own + [found for part in value.values() for found in references(part)]
    return (
        [found for part in value for found in references(part)] if isinstance(value, list) else []
    )
