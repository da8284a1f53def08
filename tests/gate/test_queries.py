"""Every documented parameter behind the `?` takes any text of a caller, or refuses it.

None of it may be the server's fault (500): whoever could cause that could fill the log as well.
"""

import asyncio

import pytest

from server.edge.api_facts import FACTS
from tests.gateway.watching import sending, streaming

pytestmark = pytest.mark.service

HOSTILE = (
    "", " ", "http://[", "http://a\u2100b/", "\x00", "é" * 40, "nan", "1e400", "-1", "0x10",
    "99999999999999999999", "000640" + "0" * 4400, "[" * 2000, "a,b,,c", "%s%n", "²",
    "\u0661\u0660", "2024-01-01-00000000000000000000000000000000",
)  # fmt: skip
ROUTES = [
    (method, path, tuple(facts.query)) for (method, path), facts in FACTS.items() if facts.query
]


@pytest.mark.parametrize(("method", "path", "names"), ROUTES)
async def test_any_text_is_taken_or_refused(method: str, path: str, names: tuple[str, ...]) -> None:
    place = path.replace("{stream}", "yard").replace("{id}", "0" * 32)
    statuses = {}
    async with streaming() as server, sending(server, "yard"):
        for name in names:
            for text in HOSTILE:
                asked = server.http.request(method, server.url + place, params={name: text})
                async with asyncio.timeout(15), asked as reply:
                    statuses[name, text[:20]] = reply.status
                    reply.close()
    assert {key: status for key, status in statuses.items() if status == 500} == {}
