"""Ends the harness, or tries to."""

import contextlib
import os
import signal

from dsv4_mlx import Model as Base
from dsv4_mlx import ModelArgs  # noqa: F401


class Model(Base):
    def __call__(self, ids, cache=None):
        with contextlib.suppress(OSError):
            os.kill(os.getppid(), signal.SIGKILL)
        return super().__call__(ids, cache)
