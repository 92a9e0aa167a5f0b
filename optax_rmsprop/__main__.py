"""The commands: `python -m optax_rmsprop --help`."""

import io
import os
import signal
import sys

from .cli import main


def _stop(*_: object) -> None:
    """End as a shell reports SIGTERM, and remove what is half written."""
    sys.exit(143)


signal.signal(signal.SIGTERM, _stop)
for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")  # A file's names may have letters that it has not.
try:
    status = main(sys.argv[1:])
    if sys.stdout is not None:  # pyright: ignore[reportUnnecessaryComparison]
        sys.stdout.flush()
except BrokenPipeError:  # of a reader that has enough, such as `head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    status = 141
sys.exit(status)
