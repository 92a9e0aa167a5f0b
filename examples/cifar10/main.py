"""Train on CIFAR-10 with RMSprop: `python -m examples.cifar10.main --help`."""

import sys
from collections.abc import Callable, Sequence

from examples.cifar10 import configs


def main(arguments: Sequence[str]) -> int:
    """Run, and return the exit code."""

    def work():
        options = configs.parse(arguments)
        # JAX takes seconds to import, and neither --help nor a wrong flag should wait for it.
        from examples.cifar10 import devices, runs

        devices.start(options)
        runs.run(options, arguments)

    return exit_code(work)


def exit_code(work: Callable[[], None]) -> int:
    """Do the work; return 2 for a caller's mistake, 1 for a diverged loss, 130 if interrupted."""
    try:
        work()
    except configs.DivergedError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    except (configs.UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except configs.InterruptedRun as error:
        print(f"{error}: the same command with --resume goes on", file=sys.stderr)
        return 130  # as a shell reports SIGINT
    except KeyboardInterrupt:
        print("interrupted: --resume continues after the last finished epoch", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
