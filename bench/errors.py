"""Why a measurement could not be made. `__main__` turns each into one line and an exit code."""


class BenchError(Exception):
    """Base of what a bench raises on purpose; the message is one line for a person."""


class UsageError(BenchError):
    """An option is out of range or does not go with another."""


class ClipError(UsageError):
    """The source pictures cannot be had."""


class ServerError(BenchError):
    """The server did not start, or answered with an error."""


class PeerError(BenchError):
    """The peer could not connect, or no picture came back."""


def check_ranges(*rows: tuple[str, float, float, float]) -> None:
    """Rows of option, value, least and most; raises `UsageError` for the first one outside."""
    for name, value, low, high in rows:
        if not low <= value <= high:
            raise UsageError(f"--{name}: {value:g} is outside {low:g}..{high:g}")
