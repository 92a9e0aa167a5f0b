"""The commands: `python -m optax_rmsprop --help`."""

import sys

from .cli import main

sys.exit(main(sys.argv[1:]))
