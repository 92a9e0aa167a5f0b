"""Commands: the rule of a log or a checkpoint, a checkpoint carried elsewhere, and where bytes go.

Nothing of this is imported with the package. What it needs besides is the extra `cli`.
"""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Run a command.

    Args:
        arguments: Those of the command line, without the program's name.

    Returns:
        The exit status: 0; 1 if a difference was found; 2 for wrong use or a file that is refused,
        with one line on the standard error.

    Example:
        >>> from optax_rmsprop.cli import main
        >>> main(["inspect", "--help"])  # doctest: +ELLIPSIS
        usage: python -m optax_rmsprop inspect ...
        0
    """
    from ._guard import EXTRA, Refused, one_line

    try:
        from . import _commands

        return _commands.run(arguments)
    except ModuleNotFoundError as error:
        reason = f"{error.name} is not installed: {EXTRA}"
    except BrokenPipeError:
        raise
    except (Refused, OSError, ValueError, TypeError, MemoryError) as error:
        reason = one_line(error)
        if reason.startswith("layout: missing"):
            reason += "; --rename OLD=NEW gives a parameter or module its name there"
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130  # as a shell reports SIGINT
    print(f"error: {reason}", file=sys.stderr)
    return 2
