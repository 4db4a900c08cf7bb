"""One line that says what is being done."""

from __future__ import annotations

import time


class Progress:
    """One line on standard error: in place on a terminal, a new line every few seconds where output is kept in a
    log."""

    EVERY = 5.0

    def __init__(self):
        from rich.console import Console

        self.console = Console(stderr=True)
        self.status = self.console.status("starting") if self.console.is_terminal else None
        self.last = time.monotonic()

    def __enter__(self) -> Progress:
        if self.status:
            self.status.start()
        return self

    def __exit__(self, *exception) -> None:
        if self.status:
            self.status.stop()

    def __call__(self, text: str) -> None:
        """Say what is being done now."""
        if self.status:
            self.status.update(text)
        elif time.monotonic() - self.last > self.EVERY:
            self.console.print(text, highlight=False)
            self.last = time.monotonic()
