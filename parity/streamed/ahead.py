"""Reading ahead: the bytes of the next block come into the system's file cache while this one computes.

They pass through one small buffer, so that no memory of the process is taken; where the cache has no room, nothing is
lost but the time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

PIECE = 16 << 20  # bytes


class Ahead:
    """At most one reading at a time."""

    def __init__(self):
        self.thread: threading.Thread | None = None
        self.stopped = threading.Event()

    def start(self, ranges: Iterable[tuple[Path, int, int]]) -> None:
        """Begin to read these: file, first byte, number of bytes."""
        self.stop()
        self.stopped.clear()
        self.thread = threading.Thread(target=self._read, args=(list(ranges),), daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """End the reading, if there is one."""
        self.stopped.set()
        if self.thread is not None:
            self.thread.join()
            self.thread = None

    def _read(self, ranges: list[tuple[Path, int, int]]) -> None:
        buffer = bytearray(PIECE)
        for path, start, size in ranges:
            try:
                with path.open("rb", buffering=0) as file:
                    file.seek(start)
                    while size > 0 and not self.stopped.is_set():
                        got = file.readinto(memoryview(buffer)[: min(PIECE, size)])
                        if not got:
                            break
                        size -= got
            except OSError:  # whoever needs the bytes will say what is wrong
                return
