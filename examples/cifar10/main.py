"""Train on CIFAR-10 with RMSprop: `python -m examples.cifar10.main --help`."""

import logging
import sys
from collections.abc import Sequence

from examples.cifar10 import configs


def main(arguments: Sequence[str]) -> int:
    """Run, and return the exit code: 2 for a caller's mistake, 1 for a diverged loss."""
    try:
        options = configs.parse(arguments)
        # JAX takes seconds to import, and neither --help nor a wrong flag should wait for it.
        from examples.cifar10 import devices, loop, runs

        # What Orbax cannot write or read it logs with a traceback, and raises too: that is shown.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        devices.start(options)
        try:
            runs.run(options, arguments)
        except loop.DivergedError as error:
            print(f"stopped: {error}", file=sys.stderr)
            return 1
        except loop.InterruptedRun as error:
            print(f"{error}: the same command with --resume goes on", file=sys.stderr)
            return 130  # as a shell reports SIGINT
    except (configs.UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: --resume continues after the last finished epoch", file=sys.stderr)
        return 130  # as a shell reports SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
