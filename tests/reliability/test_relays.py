"""H17: where a relay must not lead, asked of a real coturn with the lines that docs/access.md
gives for it."""

import asyncio
import contextlib
import os
import re
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aioice import stun
from aioice.turn import TurnClientUdpProtocol

from server.access.turn import ice_servers_json
from tests.reliability.matrix import Matrix
from tests.serving import DEADLINE_S, changed

pytestmark = pytest.mark.loopback

PAGE = Path(__file__).resolve().parents[2] / "docs" / "access.md"
SECRET = "the-same-in-both"
FORBIDDEN = 403
CLOSED = (
    "127.0.0.1", "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.9.9", "192.168.1.20",
    "169.254.169.254", "100.64.0.1", "0.0.0.1", "198.18.0.1", "224.0.0.251", "255.255.255.255",
)  # fmt: skip
# Of RFC 5737: nobody's, but not ours either.
OPEN = ("192.0.2.1", "203.0.113.7")


def documented_lines() -> list[str]:
    """The block of turnserver.conf in the documentation."""
    found = re.search(r"```ini\n(# turnserver\.conf\n.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert found is not None
    return found[1].replace("SECRET", SECRET).splitlines()


def turnserver_path() -> str:
    """Without it the test fails under CI and skips elsewhere."""
    found = shutil.which("turnserver")
    if found is not None:
        return found
    reason = "coturn is not installed (apt-get install coturn)"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@asynccontextmanager
async def coturn(folder: Path) -> AsyncIterator[tuple[str, int]]:
    """Up until the block ends; yields where it listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        address: tuple[str, int] = probe.getsockname()
    config = folder / "turnserver.conf"
    own = [
        f"listening-port={address[1]}", "listening-ip=127.0.0.1", "relay-ip=127.0.0.1", "no-tls",
        "no-dtls", "log-file=stdout", f"pidfile={folder}/pid", f"userdb={folder}/users",
    ]  # fmt: skip
    config.write_text("\n".join([*documented_lines(), *own]) + "\n")
    process = await asyncio.create_subprocess_exec(
        turnserver_path(), "-c", str(config), cwd=folder,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@asynccontextmanager
async def allocation(
    server: tuple[str, int], username: str, password: str
) -> AsyncIterator[TurnClientUdpProtocol]:
    """A relayed address with these credentials."""
    transport, client = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: TurnClientUdpProtocol(server, username, password, 600, 500), remote_addr=server
    )
    try:
        await client.connect()
        yield client
        await client.delete()
    finally:
        transport.close()


async def code_of(client: TurnClientUdpProtocol, channel: int, peer: str) -> int:
    """200, or why the relay does not lead there."""
    try:
        await client.channel_bind(channel, (peer, 40_000))
    except stun.TransactionFailed as failure:
        return int(failure.response.attributes["ERROR-CODE"][0])
    return 200


async def test_a_relay_as_documented_leads_nobody_into_the_network_behind_it(
    tmp_path: Path, matrix: Matrix
) -> None:
    settings = changed(
        auth={"turn_secret": SECRET}, rtc={"ice_servers": ("turn:relay.example:3478",)}
    )
    [server] = ice_servers_json(settings, "somebody", relays=True)
    async with coturn(tmp_path) as address:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                # Its first answers come when it is up; until then nobody answers.
                with contextlib.suppress(stun.TransactionTimeout, OSError):
                    async with allocation(address, server["username"], server["credential"]):
                        break
        async with allocation(address, server["username"], server["credential"]) as client:
            peers = [*CLOSED, *OPEN]
            codes = {
                peer: await code_of(client, 0x4000 + number, peer)
                for number, peer in enumerate(peers)
            }
        with pytest.raises(stun.TransactionFailed) as refusal:
            async with allocation(address, server["username"], "guessed"):
                pass
    unauthorised = refusal.value.response.attributes["ERROR-CODE"][0]
    matrix.record(
        "H17",
        figure=f"coturn with the lines of docs/access.md and our credentials: {len(CLOSED)} "
        f"addresses on private, local and shared networks "
        f"{sorted({codes[peer] for peer in CLOSED})}, {len(OPEN)} outside "
        f"{sorted({codes[peer] for peer in OPEN})}; with a wrong password {unauthorised}",
        threshold="403 for every address behind the relay, 401 without our secret",
        note="what a caller may have fetched is `tests/sources/test_address.py`: link-local, "
        "loopback and metadata addresses are 403 after the name is looked up",
        holds={codes[peer] for peer in CLOSED} == {FORBIDDEN}
        and {codes[peer] for peer in OPEN} == {200}
        and unauthorised == 401,
    )
