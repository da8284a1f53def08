"""Keys, patterns, tokens and tickets as plain objects."""

import hashlib
import os
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.access.auth import (
    ANYONE,
    SCOPES,
    TICKET_LIFE_S,
    Authority,
    KeyRing,
    Principal,
    Revocations,
    Tickets,
    Tokens,
    includes,
    is_required,
    matches,
    parse_patterns,
    parse_scopes,
    parse_span_s,
    token_maker,
)
from server.clock import NS_PER_S
from server.errors import MalformedError, SettingsError, TooManyError, UnauthorizedError
from server.settings import STREAM_NAME, AuthSettings
from server.state_files import write_private
from tests.gate.guarded import ADMIN, FRONT, KEYS, SECRET, token

pytestmark = pytest.mark.unit

CHARACTERS = string.ascii_letters + string.digits + "._-"
NAMES = st.from_regex(STREAM_NAME, fullmatch=True)
PATTERNS = st.one_of(st.just("*"), NAMES, NAMES.map(lambda name: name[:62] + "*"))


@pytest.mark.parametrize(
    ("pattern", "stream", "fits"),
    [
        ("*", "front", True),
        ("*", None, True),
        ("front", "front", True),
        ("front", "front-door", False),
        ("front-*", "front-door", True),
        ("front-*", "front-", True),
        ("front-*", "front", False),
        ("front-*", "back-front-door", False),
        # what has no name is for everything's owner alone
        ("front-*", None, False),
        ("front", None, False),
        # a point is a point
        ("a.c", "abc", False),
    ],
)
def test_a_pattern_fits_names_by_their_beginning(
    pattern: str, stream: str | None, fits: bool
) -> None:
    assert matches(pattern, stream) is fits


@given(own=PATTERNS, other=PATTERNS, name=NAMES)
def test_what_an_included_pattern_fits_is_fitted_by_the_including_one(
    own: str, other: str, name: str
) -> None:
    if includes(own, other) and matches(other, name):
        assert matches(own, name)


@given(own=PATTERNS, name=NAMES)
def test_a_pattern_includes_a_plain_name_exactly_when_it_fits_it(own: str, name: str) -> None:
    assert includes(own, name) is matches(own, name)


@given(text=st.text(max_size=100))
def test_whatever_text_is_given_as_a_pattern_is_taken_whole_or_refused_in_one_line(
    text: str,
) -> None:
    refusal = ""
    try:
        assert parse_patterns([text]) == (text,)
    except MalformedError as error:
        refusal = str(error)
    assert refusal.isprintable()
    assert refusal or set(text) <= set(CHARACTERS + "*")


@given(
    value=st.one_of(
        st.none(), st.integers(), st.lists(st.text()), st.dictionaries(st.text(), st.text())
    )
)
def test_scopes_and_patterns_that_are_not_text_are_refused(value: object) -> None:
    with pytest.raises(MalformedError):
        parse_patterns([value])
    with pytest.raises(MalformedError):
        parse_scopes([value])


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("1h", 3600), ("7d", 604800)]
)
def test_spans_are_read(text: str, seconds: int) -> None:
    assert parse_span_s(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "1", "0s", "-1s", "1.5h", "1 h", "1w", "9" * 20 + "s"])
def test_other_spans_are_refused(text: str) -> None:
    with pytest.raises(MalformedError, match="ttl"):
        parse_span_s(text)


def test_a_key_is_found_by_its_text_or_its_digest_and_knows_its_scopes() -> None:
    hashed = f"view:front:sha256={hashlib.sha256(ADMIN.encode()).hexdigest()}"
    for row, scopes, streams in (
        (ADMIN, set(SCOPES), ("*",)),
        (f"view+publish:a+b-*:{ADMIN}", {"view", "publish"}, ("a", "b-*")),
        (hashed, {"view"}, ("front",)),
    ):
        found = KeyRing([row]).find(ADMIN)
        assert found is not None
        assert (set(found.scopes), found.streams) == (scopes, streams)
        assert found.expires_at_unix_s is None
        assert ADMIN not in repr(found)
        assert KeyRing([row]).find(ADMIN[:-1]) is None
    named = KeyRing([f"view:front:{ADMIN}:Front desk"]).find(ADMIN)
    assert named is not None
    assert named.name == "Front desk"
    digest = hashlib.sha256(ADMIN.encode()).hexdigest()
    assert KeyRing([ADMIN]).find(digest) is None
    assert KeyRing([hashed]).find(f"sha256={digest}") is None


@pytest.mark.parametrize(
    "row",
    [
        "short",
        "view:front",
        f"look:front:{ADMIN}",
        f"view:fr/ont:{ADMIN}",
        f"view::{ADMIN}",
        f":*:{ADMIN}",
        "view:*:sha256=abc",
        f"{ADMIN} with blanks",
        "",
    ],
)
def test_a_wrong_key_row_is_refused_by_its_number_and_never_shown(row: str) -> None:
    with pytest.raises(SettingsError, match="row 2") as refusal:
        KeyRing([ADMIN, row])
    assert ADMIN not in str(refusal.value)


def tokens(**more: float) -> Tokens:
    return Tokens(SECRET, more.get("max_life_s", 3600.0), Revocations(None))


def test_a_token_is_read_as_it_was_issued() -> None:
    text, issued = tokens().issue(frozenset({"view"}), ("front-*",), 60)
    assert tokens().read(text) == issued
    assert issued.allows("view", "front-door")
    assert not issued.allows("publish", "front-door")
    assert not issued.allows("view", "back")
    assert not issued.allows("view", None)


TAMPERED = token()[:-4] + ("AAAA" if not token().endswith("AAAA") else "BBBB")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (token(exp=1_000_000), "run out"),
        (token(algorithm="none"), "not one"),
        (token(secret=SECRET[::-1]), "not one"),
        (token(algorithm="HS512"), "not one"),
        (token(aud="another"), "not one"),
        (token(aud=None), "not one"),
        (token(exp=None), "not one"),
        (token(iat=None), "not one"),
        (token(jti=None), "not one"),
        (token(iat=4_000_000_000, exp=4_000_000_060), "not one"),
        (token(typ="JWT"), "not one"),
        (token(scope=None), "scope"),
        (token(scope="view fly"), "scopes"),
        (token(streams="*"), "streams"),
        (token(streams=["../etc"]), "streams"),
        (token(streams=[]), "streams"),
        (TAMPERED, "not one"),
        (token().rpartition(".")[0] + ".", "not one"),
        ("a.b.c", "not one"),
        ("", "not one"),
    ],
)  # fmt: skip
def test_a_token_that_is_not_exactly_ours_is_refused(text: str, told: str) -> None:
    with pytest.raises(UnauthorizedError, match=told) as refusal:
        tokens().read(text)
    assert refusal.value.headers["WWW-Authenticate"].startswith("Bearer")


def test_the_unchanged_token_of_that_table_is_taken() -> None:
    assert tokens().read(token()).token_id == "test-token"


@given(text=st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), max_size=300))
def test_no_other_text_is_a_token(text: str) -> None:
    with pytest.raises(UnauthorizedError):
        tokens().read(text)


@pytest.mark.parametrize("life_s", [0, -1, 3601])
def test_a_token_lives_no_longer_than_the_setting(life_s: float) -> None:
    with pytest.raises(MalformedError, match="token_max_hours"):
        tokens().issue(frozenset({"view"}), ("*",), life_s)


def test_a_revoked_token_stays_revoked_after_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "revoked.json"
    first = Tokens(SECRET, 3600, Revocations(file))
    text, principal = first.issue(frozenset({"view"}), ("*",), 60)
    other, _ = first.issue(frozenset({"view"}), ("*",), 60)
    first.revoke(principal.token_id)
    first.write_revoked()
    for again in (first, Tokens(SECRET, 3600, Revocations(file))):
        with pytest.raises(UnauthorizedError, match="revoked"):
            again.read(text)
        again.read(other)
        assert not again.is_good(principal)
    assert file.stat().st_mode & 0o777 == 0o600


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "revoked.json"
    file.mkdir()
    with pytest.raises(SettingsError, match="state_dir"):
        write_private(file, "{}", "state_dir")
    assert list(tmp_path.iterdir()) == [file]


def test_revocations_of_tokens_that_have_run_out_are_forgotten(tmp_path: Path) -> None:
    file = tmp_path / "revoked.json"
    revocations = Revocations(file)
    revocations.add("old", 1.0)
    revocations.add("new", 4e9)
    revocations.write()
    assert "old" not in revocations
    assert "old" not in file.read_text()
    assert "new" in Revocations(file)


def test_damaged_revocations_stop_the_start_instead_of_letting_everybody_in(
    tmp_path: Path,
) -> None:
    file = tmp_path / "revoked.json"
    for text in ("{", "[]", '{"a": "b"}'):
        file.write_text(text)
        file.chmod(0o600)
        with pytest.raises(SettingsError, match="damaged"):
            Revocations(file)


def test_a_ticket_is_good_once_and_for_half_a_minute() -> None:
    now_ns = [0]
    tickets = Tickets(lambda: now_ns[0])
    who = Principal("someone", frozenset({"view"}), ("*",))
    first, second = tickets.issue(who), tickets.issue(who)
    assert tickets.take(first) is who
    with pytest.raises(UnauthorizedError):
        tickets.take(first)
    with pytest.raises(UnauthorizedError):
        tickets.take("never issued")
    now_ns[0] = TICKET_LIFE_S * NS_PER_S
    with pytest.raises(UnauthorizedError):
        tickets.take(second)


def test_open_tickets_have_a_bound() -> None:
    now_ns = [0]
    tickets = Tickets(lambda: now_ns[0])
    for _ in range(1000):
        tickets.issue(ANYONE)
    with pytest.raises(TooManyError):
        tickets.issue(ANYONE)
    now_ns[0] = TICKET_LIFE_S * NS_PER_S
    tickets.issue(ANYONE)


@pytest.mark.parametrize(
    ("auth", "host", "needed"),
    [
        ("auto", "127.0.0.1", False),
        ("auto", "127.8.9.1", False),
        ("auto", "::1", False),
        ("auto", "localhost", False),
        ("auto", "0.0.0.0", True),
        ("auto", "::", True),
        ("auto", "192.168.1.5", True),
        ("auto", "camera.example", True),
        # nothing that only looks like loopback
        ("auto", "127.0.0.1.example", True),
        ("auto", "", True),
        ("on", "127.0.0.1", True),
        ("off", "0.0.0.0", False),
    ],
)
def test_a_key_is_needed_unless_we_listen_on_loopback_or_are_told(
    auth: str, host: str, needed: bool
) -> None:
    assert is_required(AuthSettings(auth=auth), host) is needed


def test_one_address_that_others_reach_is_enough_to_ask_for_a_key() -> None:
    settings = AuthSettings(auth="auto")
    assert not is_required(settings, "127.0.0.1", "::1", "localhost")
    assert is_required(settings, "127.0.0.1", "0.0.0.0")


def test_the_secret_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    settings = AuthSettings(state_dir=str(tmp_path / "state"))
    text, principal = token_maker(settings).issue(frozenset({"view"}), ("*",), 60)
    assert token_maker(settings).read(text) == principal
    file = tmp_path / "state" / "token.secret"
    assert file.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    file.chmod(0o640)
    with pytest.raises(SettingsError, match="can be read by others"):
        token_maker(settings)


def test_a_secret_that_could_be_guessed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="token_secret") as refusal:
        token_maker(AuthSettings(token_secret="letmein"))
    assert "letmein" not in str(refusal.value)
    (tmp_path / "token.secret").touch(0o600)
    with pytest.raises(SettingsError, match="token_secret"):
        token_maker(AuthSettings(state_dir=str(tmp_path)))


def test_keys_come_from_the_file_too_and_only_if_it_is_private(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# who looks at the front\n\n{KEYS[2]}  # by the door\n")
    file.chmod(0o600)
    settings = AuthSettings(
        auth="on", api_keys=(ADMIN,), api_keys_file=str(file), token_secret=SECRET
    )
    authority = Authority(settings, "127.0.0.1")
    assert authority.key_count == 2
    assert authority.identify(f"Bearer {FRONT}").streams == ("front-*",)
    file.chmod(0o604)
    with pytest.raises(SettingsError, match="can be read by others"):
        Authority(settings, "127.0.0.1")
    os.unlink(file)
    with pytest.raises(SettingsError, match="does not exist"):
        Authority(settings, "127.0.0.1")


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Basic YTpi", ADMIN, f"Bearer {ADMIN} x", f"Token {ADMIN}",
     f"Bearer {ADMIN}\u00e9", f"Bearer {ADMIN}\udcff", "Bearer " + "x" * 5000],
)  # fmt: skip
def test_only_bearer_with_a_known_secret_identifies(authorization: str | None) -> None:
    authority = Authority(AuthSettings(auth="on", api_keys=KEYS, token_secret=SECRET), "127.0.0.1")
    with pytest.raises(UnauthorizedError):
        authority.identify(authorization)
    assert authority.identify(f"bearer {ADMIN}").has("control")


def test_where_no_key_is_needed_nothing_is_read_or_written(tmp_path: Path) -> None:
    settings = AuthSettings(state_dir=str(tmp_path / "state"))
    authority = Authority(settings, "127.0.0.1")
    assert authority.identify(None) is ANYONE
    assert not (tmp_path / "state").exists()
    with pytest.raises(MalformedError, match="auth: off"):
        _ = authority.tokens
    with pytest.raises(MalformedError, match="auth: off"):
        authority.issue_ticket(ANYONE)


def test_a_ticket_ends_with_its_token() -> None:
    settings = AuthSettings(auth="on", token_secret=SECRET)
    authority = Authority(settings, "127.0.0.1")
    _, principal = authority.tokens.issue(frozenset({"view"}), ("*",), 60)
    good, late = authority.issue_ticket(principal), authority.issue_ticket(principal)
    assert authority.take_ticket(good) == principal
    authority.tokens.revoke(principal.token_id)
    with pytest.raises(UnauthorizedError, match="ended"):
        authority.take_ticket(late)
