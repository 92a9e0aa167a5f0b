"""The commands: `python -m optax_rmsprop --help`."""

import io
import os
import signal
import sys

from .cli import main

for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")  # names may have letters that it has not
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # What is half written is removed.
try:
    status = main(sys.argv[1:])
    if sys.stdout is not None:
        sys.stdout.flush()
except BrokenPipeError:  # of a reader that has enough, such as `head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    status = 141  # as a shell reports SIGPIPE
sys.exit(status)
