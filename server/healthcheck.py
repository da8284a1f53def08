"""`python -m server.healthcheck`: whether the server with these settings is alive; for containers.

Takes what the server takes (flags, variables, file), so that it asks where that one listens, over
TLS where it speaks TLS. Loads nothing heavy. Exit code 0 for alive.
"""

import argparse
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence

from server.errors import SettingsError
from server.settings import Settings
from server.settings_loading import add_arguments, load_settings

TIMEOUT_S = 2.0
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m server.healthcheck",
        usage="python -m server.healthcheck [--SETTING VALUE ...] [--help]",
        description=__doc__,
    )
    add_arguments(parser)
    try:
        url = health_url(load_settings(parser.parse_args(arguments)))
    except SettingsError as error:
        print(f"sightline: {error}", file=sys.stderr)
        return 2
    # Its own machine, and a certificate that names others: nothing secret is said.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S, context=context) as reply:
            return 0 if reply.status == 200 else 1
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        print(f"{url}: {getattr(reason, 'strerror', None) or reason}", file=sys.stderr)
        return 1


def health_url(settings: Settings) -> str:
    """Where that server says whether it is alive."""
    server, tls = settings.server, settings.tls
    secure = tls.tls == "self-signed" or (tls.tls == "auto" and bool(tls.tls_certificate))
    host = ANYWHERE.get(server.host, f"[{server.host}]" if ":" in server.host else server.host)
    return f"{'https' if secure else 'http'}://{host}:{server.port}/healthz"


if __name__ == "__main__":
    sys.exit(main())
