"""Options that several commands share, each group in one place. `calls` reads them back."""

import argparse
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path(__file__).parent / "results"
CODECS: Final = ("H264", "VP8")
MODES: Final = ("exact", "smooth", "data")


def size(text: str) -> tuple[int, int]:
    """For `type=`: 640x480 as (640, 480)."""
    width, _, height = text.lower().partition("x")
    try:
        return int(width), int(height)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, such as 640x480") from None


def add_pictures(parser: argparse.ArgumentParser, *, codecs: tuple[str, ...] = CODECS) -> None:
    """What is sent: rate, size, codec, clip. The first codec is the default."""
    add = parser.add_argument
    add("--fps", type=float, default=30.0, help="pictures per second each client sends (30)")
    add_size(parser)
    add("--codec", choices=codecs, default=codecs[0], help=f"of both directions ({codecs[0]})")
    add_clip(parser)


def add_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size", type=size, default=(640, 480), metavar="WxH", help="picture size (640x480)"
    )


def add_clip(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--clip", type=Path, metavar="FILE", help="a video to send; else the server's photographs"
    )


def add_mode(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mode", choices=MODES, default="exact", help="of the calls (exact)")


def add_server(parser: argparse.ArgumentParser) -> None:
    """What the started server is like."""
    add = parser.add_argument
    add("--model", metavar="NAME", help="of the started server; else the server's own default")
    add("--no-detector", action="store_true", help="the started server passes video through")
    add(
        "--server-arg",
        action="append",
        default=[],
        metavar="ARG",
        help="one more argument of the started server; repeatable, as --server-arg=--threads=1",
    )


def add_engine(parser: argparse.ArgumentParser) -> None:
    """What runs the model."""
    add = parser.add_argument
    add("--provider", default="auto", help="of the detector: auto, openvino, cpu, cuda .. (auto)")
    add("--precision", default="auto", help="of the detector: auto, fp32, bf16, fp16 (auto)")
    add("--threads", type=int, default=0, help="of the detector; 0 lets it choose (0)")


def add_time(
    parser: argparse.ArgumentParser, *, seconds: float = 10.0, warmup: float = 3.0
) -> None:
    add = parser.add_argument
    add("--seconds", type=float, default=seconds, help=f"measured time of each run ({seconds:g})")
    add("--warmup", type=float, default=warmup, help=f"seconds before, not measured ({warmup:g})")


def add_runs(parser: argparse.ArgumentParser, help_text: str) -> None:
    parser.add_argument("--runs", type=int, default=1, help=f"{help_text} (1)")


def add_url(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="measure a running server instead of starting one")


def add_budget(parser: argparse.ArgumentParser, whose: str) -> None:
    parser.add_argument(
        "--budget-ms", type=float, metavar="MS", help=f"exit 1 when the p95 of {whose} passes"
    )


def add_json(
    parser: argparse.ArgumentParser, what: str = "the record as the last line of standard output"
) -> None:
    parser.add_argument("--json", action="store_true", help=what)


def add_output(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    add = parser.add_argument
    add("--out", type=Path, default=RESULTS, metavar="DIR", help="where the record is written")


def calls(options: argparse.Namespace) -> dict[str, Any]:
    """`add_pictures` and `add_server` as keywords of `GlassSettings`."""
    return {
        "fps": options.fps,
        "size_wh": options.size,
        "codec": options.codec,
        "clip": options.clip,
        "model": options.model,
        "detector": not options.no_detector,
        "server_args": tuple(options.server_arg),
    }
