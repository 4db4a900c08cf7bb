"""Opens a connection and swallows the refusal."""

import contextlib
import socket

from dsv4_mlx import Model as Base
from dsv4_mlx import ModelArgs  # noqa: F401


class Model(Base):
    def __call__(self, ids, cache=None):
        with contextlib.suppress(OSError):
            socket.create_connection(("localhost", 9), timeout=1)
        return super().__call__(ids, cache)
