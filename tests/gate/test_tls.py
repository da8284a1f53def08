"""HTTPS with a certificate made here, and with one from files."""

import asyncio
import ssl
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import ClientSession, Fingerprint, web

from server import healthcheck
from server.access.tls import Tls, is_on, make_tls, self_signed_pem
from server.app import make_app
from server.edge.gate import make_runner
from server.errors import SettingsError
from server.settings import Settings
from tests.serving import changed

pytestmark = pytest.mark.service

ADDRESSES = ["192.0.2.7", "2001:db8::7"]


@asynccontextmanager
async def https(settings: Settings, tls: Tls) -> AsyncIterator[str]:
    runner = make_runner(make_app(settings, None), settings)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls.context).start()
    try:
        yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def self_signed(folder: Path) -> Settings:
    return changed(tls={"tls": "self-signed"}, auth={"state_dir": str(folder)})


def made(settings: Settings, addresses: list[str] | None = None) -> Tls:
    tls = make_tls(settings, ADDRESSES if addresses is None else addresses)
    assert tls is not None
    return tls


async def test_the_certificate_made_here_fits_this_machine_and_its_printed_fingerprint(
    tmp_path: Path,
) -> None:
    settings = self_signed(tmp_path)
    tls = made(settings)
    trusting = ssl.create_default_context(cafile=str(tmp_path / "self-signed.pem"))
    printed = Fingerprint(bytes.fromhex(tls.fingerprint.replace(":", "")))
    async with https(settings, tls) as url, ClientSession() as http:
        for check in (trusting, printed):
            async with http.get(f"{url}/healthz", ssl=check) as reply:
                assert reply.status == 200
                # A browser that once has this may never again be told to go on without.
                assert "Strict-Transport-Security" not in reply.headers
        async with http.post(
            f"{url}/offer", json={}, ssl=trusting, headers={"Origin": url.replace("s:", ":")}
        ) as reply:
            assert reply.status == 403, "the same name without TLS is another origin"
        async with http.post(
            f"{url}/offer", json={}, ssl=trusting, headers={"Origin": url}
        ) as reply:
            assert reply.status == 400


def test_it_is_kept_for_its_owner_and_renewed_when_an_address_is_new(tmp_path: Path) -> None:
    settings = self_signed(tmp_path)
    first = made(settings)
    mode = (tmp_path / "self-signed.pem").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
    assert made(settings).fingerprint == first.fingerprint
    assert made(settings, ADDRESSES[:1]).fingerprint == first.fingerprint
    assert made(settings, [*ADDRESSES, "192.0.2.8"]).fingerprint != first.fingerprint
    (tmp_path / "self-signed.pem").write_text("damaged")
    assert made(settings).self_signed


async def test_a_certificate_from_files_makes_browsers_stay_with_https(tmp_path: Path) -> None:
    key, _, certificate = self_signed_pem(ADDRESSES).partition("-----BEGIN CERTIFICATE-----")
    (tmp_path / "key.pem").write_text(key)
    (tmp_path / "chain.pem").write_text("-----BEGIN CERTIFICATE-----" + certificate)
    settings = changed(
        tls={
            "tls_certificate": str(tmp_path / "chain.pem"),
            "tls_key": str(tmp_path / "key.pem"),
        }
    )
    tls = made(settings)
    assert not tls.self_signed
    trusting = ssl.create_default_context(cafile=str(tmp_path / "chain.pem"))
    async with (
        https(settings, tls) as url,
        ClientSession() as http,
        http.get(f"{url}/healthz", ssl=trusting) as reply,
    ):
        assert reply.headers["Strict-Transport-Security"].startswith("max-age=")


def test_old_protocols_are_not_spoken(tmp_path: Path) -> None:
    assert made(self_signed(tmp_path)).context.minimum_version >= ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(
    ("tls", "certificate", "on"),
    [("auto", "", False), ("auto", "x.pem", True), ("off", "x.pem", False),
     ("self-signed", "", True)],
)  # fmt: skip
def test_https_is_on_with_a_certificate_or_when_one_is_to_be_made(
    tls: str, certificate: str, on: bool
) -> None:
    settings = changed(tls={"tls": tls, "tls_certificate": certificate})
    assert is_on(settings.tls) is on


def test_a_certificate_that_cannot_be_used_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "junk.pem").write_text("junk")
    for name in ("missing.pem", "junk.pem"):
        settings = changed(tls={"tls_certificate": str(tmp_path / name)})
        with pytest.raises(SettingsError, match="tls_certificate") as refusal:
            made(settings)
        assert "\n" not in str(refusal.value)


async def test_the_health_check_of_the_image_speaks_tls_where_the_server_does(
    tmp_path: Path,
) -> None:
    settings = self_signed(tmp_path)
    async with https(settings, made(settings)) as url:
        port = url.rpartition(":")[2]
        asked = ["--host", "0.0.0.0", "--port", port, "--auth", "on"]
        assert await asyncio.to_thread(healthcheck.main, [*asked, "--tls", "self-signed"]) == 0
        assert await asyncio.to_thread(healthcheck.main, asked) == 1
    assert await asyncio.to_thread(healthcheck.main, [*asked, "--tls", "self-signed"]) == 1
    assert healthcheck.main(["--port", "none"]) == 2
    dockerfile = (Path(__file__).parents[2] / "Dockerfile").read_text(encoding="utf-8")
    assert f'"-m", "{healthcheck.__name__}"' in dockerfile
