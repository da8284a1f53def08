"""`python -m bench.naive ...`: the server, but with an encoder for every viewer.

What a gateway of one peer connection a viewer costs, in this very server: the other side of the
comparison of `bench fanout`. Takes the server's own arguments.
"""

import itertools
import sys

import server.peer_factory
from server.__main__ import main
from server.hub import Hub
from server.rtc.fanout import Fanout


class EncodesPerViewer(Hub):
    """Gives each viewer an encoding of its own."""

    _numbers = itertools.count()

    def fanout(self, codec: str, rung: str) -> Fanout:
        return super().fanout(codec, f"{rung} {next(self._numbers)}")


if __name__ == "__main__":
    # Hubs are made from this name.
    server.peer_factory.Hub = EncodesPerViewer  # type: ignore[attr-defined]
    sys.exit(main())
