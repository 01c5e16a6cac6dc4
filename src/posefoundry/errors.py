"""What goes wrong in ways a user can mend: each message says what was expected, what was got, where, what to do."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class PosefoundryError(Exception):
    """A fault of input, configuration or environment. Shown as one message, never as a traceback.

    Stages and the command line end with `exit_status` when they meet one.
    """

    exit_status = 2


class RejectedError(PosefoundryError):
    """A gate said no. The candidate is not good enough; the program works."""

    exit_status = 3


class StoppedError(PosefoundryError):
    """A signal asked for the end; what was done so far is kept, and the next run goes on from there."""

    exit_status = 143  # what a shell says of a program that SIGTERM ended


@contextmanager
def told_in_a_message(program: str) -> Iterator[None]:
    """Ends the process with a message and an exit status where the block meets what a user can mend.

    Exit status: 2 a fault that its message explains, 3 rejected by a gate, 143 stopped by a signal, 130 by Ctrl-C.

    Args:
        program: What the message begins with.
    """
    try:
        yield
    except PosefoundryError as error:
        verdict = "rejected. " if isinstance(error, RejectedError) else ""
        print(f"{program}: {verdict}{error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except OSError as error:  # a full disk, a folder without permission: the user's to mend, and no bug
        where = f"{error.filename}: " if error.filename else ""
        print(f"{program}: {where}the system refused: {error.strerror or error}.", file=sys.stderr)
        sys.exit(PosefoundryError.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)
