"""What a command gives to the outside: text on the terminal, documents in files, an exit code; and what ends it early.

The terminal comes first and files after it, so that no full disk hides a verdict. A reader that closes the pipe has
read enough: that changes no exit code.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console

from ..errors import NO_ROOM, BadEnvironment, ParityError, Stopped

AGAIN = 1.0  # seconds until a lost end is asked for again
# What numpy and safetensors say of a full disk in exceptions without a number.
FULL = ("No space left on device", "Disk quota exceeded", "requested and", "No usable temporary directory")


class Terminal(Console):
    """A console 120 columns wide where nobody looks; a closed pipe ends its output and nothing else."""

    def __init__(self):
        super().__init__()
        if not self.is_terminal:
            self.width = 120

    def on_broken_pipe(self) -> None:
        self.quiet = True
        to_nowhere()


def to_nowhere() -> None:
    """Let standard output take whatever is still written, as at the end of the process."""
    with contextlib.suppress(OSError, ValueError):  # a stand-in has no number
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def prepare() -> None:
    """A name that the terminal's encoding lacks is shown by its code, in place of an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the command as Ctrl-C does: the candidate gone, temporary folders too.

    What a signal's handler raises in a destructor or in a library's callback is lost there. So it is raised again once
    it is gone, until whoever ends the run has it (`errors.stopped_by`).
    """
    asked, raised = "", lambda: None

    def stop(number, frame):
        nonlocal asked, raised
        if number != signal.SIGALRM:
            asked = signal.Signals(number).name
        elif raised() is not None:  # on its way
            return
        signal.setitimer(signal.ITIMER_REAL, AGAIN, AGAIN)
        error = Stopped(asked)
        raised = weakref.ref(error)
        try:
            raise error
        finally:
            del error  # or this frame, which the error's traceback holds, would keep it alive

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def say(sentence: str) -> None:
    """One line on standard error, whatever names it quotes."""
    from ..report.view import UNSAFE

    safe = UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", sentence.replace("\n", "\\n").replace("\t", "\\t"))
    print(f"parity: {safe}", file=sys.stderr)


def deliver(steps: Iterable[Callable[[], None]]) -> list[ParityError]:
    """Show and write, one step after the other, whatever becomes of the others; what could not be done."""
    problems = []
    for step in steps:
        try:
            step()
            sys.stdout.flush()
        except BrokenPipeError:
            to_nowhere()
        except ParityError as error:
            problems.append(error)
        except OSError as error:
            to_nowhere()
            problems.append(BadEnvironment(f"Standard output cannot be written ({error.strerror})."))
    return problems


def end(code: int, problems: list[ParityError]) -> int:
    """Say what could not be written; a verdict's code stands, but no green hides that its report is missing."""
    for problem in problems:
        say(str(problem))
    return code or (problems[0].exit_code if problems else 0)


def no_room(error: BaseException) -> BadEnvironment | None:
    """The problem that an exception stands for where the machine has no room for files or memory."""
    said = str(error)
    numbered = isinstance(error, MemoryError) or getattr(error, "errno", None) in NO_ROOM
    if not numbered and not any(words in said for words in FULL):
        return None
    if isinstance(error, MemoryError):
        reason = "out of memory"
    else:
        reason = getattr(error, "strerror", None) or next(
            (words for words in FULL[:2] if words in said), "the disk is full"
        )
    return BadEnvironment(f"This machine has no room to work in ({reason.rstrip('.')}); free some, or set TMPDIR.")
