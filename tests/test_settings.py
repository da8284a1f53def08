import argparse
import dataclasses
import re
from pathlib import Path

import pytest

from server.errors import SettingsError
from server.peer_factory import rtc_options
from server.rtc.options import RtcOptions
from server.settings import RTC_SWITCHES, Settings
from server.settings_loading import KEYS, add_arguments, load_settings

pytestmark = pytest.mark.unit


def load(*arguments: str, environment: dict[str, str] | None = None) -> Settings:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return load_settings(parser.parse_args(arguments), environment or {})


def test_defaults_are_valid_and_listen_on_loopback() -> None:
    settings = load()
    assert settings.server.host == "127.0.0.1"
    assert settings.rtc.ice_servers == ()
    assert settings.rtc.port_pair() is None


SECRETS = (
    "api_keys", "ice_credential", "mqtt_password", "mqtt_url", "sources", "store", "token_secret",
    "turn_secret", "webhook_secret", "webhook_urls",
)  # fmt: skip


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_stands_in_no_settings_that_are_printed_and_in_no_message(
    name: str, tmp_path: Path
) -> None:
    assert "S3cret" not in repr(load(environment={f"SIGHTLINE_{name.upper()}": "S3cret" * 6}))
    file = tmp_path / "sightline.yaml"
    file.write_text(f"{name}: {{a: S3cret}}\n")
    with pytest.raises(SettingsError, match=name) as caught:
        load("--config", str(file))
    assert "S3cret" not in str(caught.value)


def test_what_is_called_a_secret_is_one() -> None:
    named = {row.name for row in KEYS if re.search("secret|password|credential|_keys$", row.name)}
    assert named <= set(SECRETS)
    assert {row.name for row in KEYS if row.is_secret} == set(SECRETS)


def test_flags_beat_variables_beat_the_file(tmp_path: Path) -> None:
    file = tmp_path / "sightline.yaml"
    file.write_text("port: 1001\nmode: smooth\nmax_sessions: 3\n")
    settings = load(
        "--config", str(file), "--port", "1003",
        environment={"SIGHTLINE_PORT": "1002", "SIGHTLINE_MAX_SESSIONS": "4"},
    )  # fmt: skip
    assert settings.server.port == 1003
    assert settings.session.max_sessions == 4
    assert settings.session.mode == "smooth"


def test_a_list_may_be_one_flag_with_commas_or_several() -> None:
    settings = load("--listen", "127.0.0.1:8000,[::1]:8001", "--listen", "0.0.0.0:8002")
    assert settings.server.addresses() == (
        ("127.0.0.1", 8080),
        ("127.0.0.1", 8000),
        ("::1", 8001),
        ("0.0.0.0", 8002),
    )


def test_the_file_may_be_named_by_a_variable(tmp_path: Path) -> None:
    file = tmp_path / "sightline.yaml"
    file.write_text("ice_servers: [stun:a, 'turn:b']\nparity: no\n")
    settings = load(environment={"SIGHTLINE_CONFIG": str(file)})
    assert settings.rtc.ice_servers == ("stun:a", "turn:b")
    assert settings.detector.parity is False


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--port", "70000"], ["--port", "70000", "0 to 65535"]),
        (["--port", "http"], ["--port", "'http'", "whole number"]),
        (["--confidence", "nan"], ["confidence", "nan"]),
        (["--mode", "fast"], ["--mode", "'fast'", "exact, smooth"]),
        (["--video-codecs", "H264,AV1"], ["video_codecs", "'AV1'", "H264, VP8"]),
        (["--video-codecs", ""], ["video_codecs", "empty"]),
        (["--parity", "maybe"], ["parity", "'maybe'", "true or false"]),
        (["--port-range", "50000"], ["port_range", "'50000'", "FIRST-LAST"]),
        (["--port-range", "80-90"], ["port_range", "80-90", "1024-65535"]),
        (["--port-range", "50010-50000"], ["port_range", "50010-50000"]),
        (["--bitrate-min-kbps", "900", "--bitrate-max-kbps", "800"], ["bitrate_min_kbps", "900"]),
        (["--rtc-disable", "gravity"], ["rtc_disable", "'gravity'", "marker_assembly"]),
        (["--stale-after-s", "9", "--silent-timeout-s", "8"], ["stale_after_s", "9"]),
        (["--listen", "8000"], ["listen", "'8000'"]),
        (["--listen", "127.0.0.1"], ["listen", "'127.0.0.1'"]),
        (["--listen", "127.0.0.1:"], ["listen", "'127.0.0.1:'"]),
        (["--listen", "::1:80"], ["listen", "'::1:80'"]),
        (["--listen", "127.0.0.1:70000"], ["listen", "70000"]),
        (["--max-image-megapixels", "200"], ["max_image_megapixels", "200", "100"]),
        (["--config", "/nowhere/x.yaml"], ["config", "/nowhere/x.yaml"]),
        (["--ice-servers", "stun.example:3478"], ["ice_servers", "stun.example", "turn:HOST"]),
    ],
)
def test_a_wrong_value_is_refused_in_one_line_that_names_it(
    arguments: list[str], told: list[str]
) -> None:
    with pytest.raises(SettingsError) as refusal:
        load(*arguments)
    message = str(refusal.value)
    assert "\n" not in message
    for part in told:
        assert part in message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prot: 8080\n", "prot: no such setting"),
        ("- port\n", "not a list of"),
        ("host: a\nport: [1\n", "is not YAML: line 3: expected"),
        ("\tport: 1\n", "is not YAML: line 1: found character"),
        ("token_secret: short\n", "token_secret: shorter than 32"),
        ("port: 1\nhost: a\nport: 2\n", "port: in line 1 and again in 3"),
        ("port: {a: 1}\n", "port"),
        ("model: [a, b]\n", "model"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=told) as refusal:
        load("--config", str(file))
    assert "\n" not in str(refusal.value)


def test_every_key_has_a_help_text_and_its_default_is_in_range() -> None:
    from server.settings_loading import parse_value

    for row in KEYS:
        assert row.help, row.name
        value = ",".join(row.default) if row.is_list else row.default
        assert parse_value(row, value, "default") == row.default


def test_every_change_to_aiortc_can_be_left_out_by_its_name() -> None:
    changes = {
        item.name
        for item in dataclasses.fields(RtcOptions)
        if item.default is True and item.type in (bool, "bool")
    }
    assert changes == set(RTC_SWITCHES)
    settings = load("--rtc-disable", ",".join(RTC_SWITCHES))
    options = rtc_options(settings.rtc, ("", ""))
    assert not any(getattr(options, name) for name in RTC_SWITCHES)
