"""Telling a port's refusal, which is a gap by name, from a crash."""

from __future__ import annotations

import builtins
import dis
import re

REFUSING = (NotImplementedError, RuntimeError, ValueError)
UNSUPPORTED = re.compile(
    r"(\bnot|n't|\bnever) (yet |currently )?(support|supported|implemented)\b"
    r"|\bunsupported\b|\bno support for\b|\bsupports? (yet )?only\b|\bonly supports?\b",
    re.IGNORECASE,
)


def refuses(error: Exception) -> bool:
    """Whether an exception says that what was asked is not offered.

    All of these: it is one of REFUSING, or the port's own kind of one (of Python's other kinds, such as RecursionError
    and UnicodeError, none is a refusal); it says so in words; a `raise` statement made it, so that it is no library's
    complaint about shapes or types; and it arose by itself, not while another exception was handled. Whether it came
    in time, at the operation itself or the first call after it, and whether the life goes on without the operation, the
    state machine knows.
    """
    kind = type(error)
    if kind not in REFUSING and (not isinstance(error, REFUSING) or kind.__module__ == builtins.__name__):
        return False
    if error.__context__ is not None or error.__cause__ is not None:
        return False
    return bool(UNSUPPORTED.search(str(error))) and _raised_by_statement(error)


def _raised_by_statement(error: Exception) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or trace.tb_lasti < 0:
        return False
    return trace.tb_frame.f_code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]
