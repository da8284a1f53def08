"""What docs/access.md says first: a server with its own TLS, a token from the command line."""

import asyncio
import json
import re
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import ClientSession, Fingerprint

pytestmark = pytest.mark.service

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0


def token_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", "token", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip


async def test_a_token_of_the_command_line_opens_the_server_it_was_made_for(tmp_path: Path) -> None:
    state = ("--state-dir", str(tmp_path))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "server", "--port", "0", "--auth", "on",
        "--tls", "self-signed", *state,
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        said = ""
        async with asyncio.timeout(DEADLINE_S):
            while "SHA-256" not in said:
                line = (await process.stdout.readline()).decode()
                assert line, f"it ended: {said}"
                said += line
        [url] = re.findall(r"https://\S+:\d+", said)
        assert "a key or token is needed" in said
        fingerprint = said.rpartition("SHA-256 ")[2].strip().replace(":", "")
        trust: Fingerprint | ssl.SSLContext = Fingerprint(bytes.fromhex(fingerprint))
        made = await asyncio.to_thread(token_command, "--scope", "control", "--ttl", "8h", *state)
        assert made.returncode == 0, made.stderr
        headers = {"Authorization": f"Bearer {made.stdout.strip()}"}
        async with ClientSession() as http:
            async with http.get(f"{url}/api/stats", ssl=trust) as reply:
                assert reply.status == 401
            async with http.get(f"{url}/api/stats", ssl=trust, headers=headers) as reply:
                assert reply.status == 200
    finally:
        process.terminate()
        async with asyncio.timeout(DEADLINE_S):
            await process.communicate()
    assert process.returncode == 0


def test_a_key_comes_with_its_line_for_the_file(tmp_path: Path) -> None:
    made = token_command("--key", "--scope", "view", "--stream", "front-*", "--json")
    assert made.returncode == 0, made.stderr
    key = json.loads(made.stdout)
    assert key["row"].startswith("view:front-*:sha256=")
    assert key["key"] not in key["row"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "--scope"),
        (["--scope", "root"], "root"),
        (["--scope", "view", "--stream", "a/b"], "streams"),
        (["--scope", "view", "--ttl", "soon"], "ttl"),
        (["--scope", "view", "--ttl", "9999d"], "token_max_hours"),
        (["--scope", "view", "--token-secret", "short"], "token_secret"),
    ],
)
def test_a_wrong_wish_is_one_line_and_exit_code_2(
    tmp_path: Path, arguments: list[str], told: str
) -> None:
    refused = token_command("--state-dir", str(tmp_path), *arguments)
    assert refused.returncode == 2
    assert told in refused.stderr.splitlines()[-1]
    assert len(refused.stderr.splitlines()) <= 2, "the line and perhaps the usage"
    assert refused.stdout == ""
