"""What goes wrong in ways a user can mend: each message says what was expected, what was got, where, what to do."""


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
