"""Addresses, origins and names of callers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.access.callers import Caller, Callers
from server.errors import ForbiddenError, SettingsError
from server.settings import AuthSettings

pytestmark = pytest.mark.unit

PLAIN = Caller("192.0.2.1", None)
SECURE = Caller("192.0.2.1", True)


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        # nobody we trust: what it says of others does not count
        ("198.51.100.7", "192.0.2.9", "198.51.100.7"),
        ("127.0.0.1", "192.0.2.9", "127.0.0.1"),
        # our proxy: the last address that is not a proxy of ours
        ("10.0.0.1", "192.0.2.9", "192.0.2.9"),
        ("10.0.0.1", "127.0.0.1, 192.0.2.9", "192.0.2.9"),
        ("10.0.0.1", "192.0.2.9, 10.0.0.2", "192.0.2.9"),
        ("10.0.0.1", "192.0.2.9,[2001:db8::1]", "2001:db8::1"),
        ("::ffff:10.0.0.1", "192.0.2.9", "192.0.2.9"),
        # it says nothing, or nonsense
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("10.0.0.1", "192.0.2.9, <script>", "10.0.0.1"),
        ("", "192.0.2.9", ""),
    ],
)
def test_the_client_is_the_last_address_no_trusted_proxy_vouches_for(
    peer: str, forwarded: str, address: str
) -> None:
    callers = Callers(AuthSettings(trusted_proxies=("10.0.0.0/8",)))
    assert callers.caller(peer, False, forwarded, "").address == address


@pytest.mark.parametrize(
    ("peer", "is_tls", "proto", "secure"),
    [
        ("192.0.2.1", False, "https", None),
        ("192.0.2.1", True, "", True),
        ("10.0.0.1", False, "https", True),
        ("10.0.0.1", False, "http, HTTPS", True),
        ("10.0.0.1", False, "https, http", False),
        ("10.0.0.1", False, "", False),
    ],
)
def test_only_a_trusted_proxy_says_that_the_page_came_over_https(
    peer: str, is_tls: bool, proto: str, secure: bool | None
) -> None:
    callers = Callers(AuthSettings(trusted_proxies=("10.0.0.1",)))
    assert callers.caller(peer, is_tls, "", proto).secure is secure


@given(peer=st.text(max_size=50), forwarded=st.text(max_size=200))
def test_no_text_of_a_proxy_breaks_the_reading(peer: str, forwarded: str) -> None:
    callers = Callers(AuthSettings(trusted_proxies=("0.0.0.0/0", "::/0")))
    caller = callers.caller(peer, False, forwarded, forwarded)
    assert isinstance(caller.group, str)
    assert isinstance(caller.is_local, bool)


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
    ],
)
def test_an_ipv6_network_counts_as_one_caller(one: str, other: str, together: bool) -> None:
    assert (Caller(one, None).group == Caller(other, None).group) is together


@pytest.mark.parametrize(
    ("origin", "host", "caller", "passes"),
    [
        (None, "cam.example", PLAIN, True),
        ("http://cam.example", "cam.example", PLAIN, True),
        ("http://CAM.example:8080", "cam.example:8080", PLAIN, True),
        # a TLS proxy we know nothing of may be between
        ("https://cam.example", "cam.example", PLAIN, True),
        ("http://cam.example", "cam.example", SECURE, False),
        ("https://cam.example", "cam.example", SECURE, True),
        ("https://board.example", "cam.example", PLAIN, True),
        ("HTTPS://Board.example", "cam.example", PLAIN, True),
        ("http://board.example", "cam.example", PLAIN, False),
        ("https://board.example.evil.example", "cam.example", PLAIN, False),
        ("https://evil.example", "cam.example", PLAIN, False),
        ("http://cam.example:81", "cam.example", PLAIN, False),
        ("null", "cam.example", PLAIN, False),
        ("", "cam.example", PLAIN, False),
        ("file://", "", PLAIN, False),
        ("http://[", "cam.example", PLAIN, False),
        ("http://cam.example:99999", "cam.example:99999", PLAIN, False),
    ],
)
def test_only_our_own_pages_and_named_origins_may_change_things(
    origin: str | None, host: str, caller: Caller, passes: bool
) -> None:
    callers = Callers(AuthSettings(allowed_origins=("https://board.example",)))
    headers = {} if origin is None else {"Origin": origin}
    if passes:
        callers.check_origin(headers, host, caller)
        return
    with pytest.raises(ForbiddenError, match="Origin") as refusal:
        callers.check_origin(headers, host, caller)
    assert str(refusal.value).isprintable()


def test_a_browser_that_hides_the_origin_still_says_the_site() -> None:
    callers = Callers(AuthSettings())
    for site in ("cross-site", "same-site"):
        with pytest.raises(ForbiddenError, match="Sec-Fetch-Site"):
            callers.check_origin({"Sec-Fetch-Site": site}, "cam.example", PLAIN)
    for site in ("same-origin", "none"):
        callers.check_origin({"Sec-Fetch-Site": site}, "cam.example", PLAIN)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8080", "[::1]:8080", "192.168.1.5", "localhost", "sightline:8080", "nas.local",
     "a.localhost", "cam.example", "CAM.example:8443", "board.example.", ""],
)  # fmt: skip
def test_names_that_no_stranger_can_register_are_taken(host: str) -> None:
    Callers(
        AuthSettings(allowed_hosts=("Cam.example",), allowed_origins=("https://board.example",))
    ).check_host(host)


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:8080", "local.evil.example", "1.2.3.4.5"]
)
def test_a_strangers_name_that_leads_here_is_refused(host: str) -> None:
    with pytest.raises(ForbiddenError, match="allowed_hosts"):
        Callers(AuthSettings()).check_host(host)


@pytest.mark.parametrize(
    "origin", ["board.example", "*", "https://*.example", "https://board.example/", "ftp://a.b",
               "https://user@board.example", "https://", "http://["],
)  # fmt: skip
def test_a_wrong_origin_in_the_settings_stops_the_start(origin: str) -> None:
    with pytest.raises(SettingsError, match="allowed_origins"):
        Callers(AuthSettings(allowed_origins=(origin,)))


def test_a_wrong_proxy_in_the_settings_stops_the_start() -> None:
    with pytest.raises(SettingsError, match="trusted_proxies"):
        Callers(AuthSettings(trusted_proxies=("proxy.example",)))
