"""Loads one model and runs it once, in a process of its own.

onnxruntime 1.24 can die of a half-precision graph (seen in its layout optimiser), and a crash must
not take the converter with it.
"""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from server.errors import ModelError
from tools.convert.ranges import quiet_session

TIMEOUT_S = 180.0


def try_model(path: Path, feed: Mapping[str, Any]) -> None:
    """ModelError when the model does not load, run, and answer with numbers."""
    feed_path = path.with_suffix(".npz")
    np.savez(feed_path, **{f"feed_{name}": values for name, values in feed.items()})
    command = [sys.executable, "-m", "tools.convert.trial", str(path), str(feed_path)]
    root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"{path.name}: does not answer within {TIMEOUT_S:.0f} s") from None
    if done.returncode < 0:
        raise ModelError(f"{path.name}: makes onnxruntime crash (signal {-done.returncode})")
    if done.returncode:
        lines = done.stdout.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ModelError(f"{path.name}: {lines[-1]}")


def main(arguments: list[str]) -> int:
    """The last line of standard output says what is wrong."""
    model, feed_path = (Path(argument) for argument in arguments)
    try:
        session = quiet_session(model.read_bytes())
        feed = {}
        with np.load(feed_path) as stored:
            for info in session.get_inputs():
                values = stored[f"feed_{info.name}"]
                half = info.type == "tensor(float16)"
                feed[info.name] = values.astype(np.float16) if half else values
        outputs = session.run(None, feed)
    except Exception as error:  # onnxruntime's exceptions share no base but this
        print("does not run: " + (str(error).strip().splitlines() or ["no reason"])[0])
        return 1
    for info, values in zip(session.get_outputs(), outputs, strict=True):
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            print(f"output {info.name} is not finite")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
