"""What stops a run: each problem is one sentence, and each class has its own exit code."""

import errno
import signal

# Numbers of OSError that mean: the machine has no room left.
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO}


class ParityError(Exception):
    """A problem whose message is one sentence for the user; the command ends with `exit_code`."""

    exit_code = 1


class BadInput(ParityError):
    """The command line, a configuration or a checkpoint cannot be used as given."""

    exit_code = 2


class BadEnvironment(ParityError):
    """A library is missing or outside its range, or this machine would compute with too few bits."""

    exit_code = 3


class NoDevice(ParityError):
    """The device that was asked for is not there: a CI job may pass over it, which it must not do with a broken
    environment."""

    exit_code = 6


class CandidateCrashed(ParityError):
    """The candidate raised, hung or died; the harness did not."""

    exit_code = 4


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end; its message is the signal's name."""


def stopped_by(stop: KeyboardInterrupt) -> str:
    """What ended a run, for its sentence: " by SIGTERM", or nothing for Ctrl-C. It is not raised again."""
    if isinstance(stop, Stopped):
        signal.setitimer(signal.ITIMER_REAL, 0)
    return f" by {stop}" if str(stop) else ""
