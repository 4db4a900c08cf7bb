"""Set up before any test module imports MLX."""

import os

import torch
from hypothesis import settings

from parity.environment import prepare_environment

prepare_environment()

# No deadline: the first call of a kernel is slow. On CI the same examples are drawn at every run.
settings.register_profile("parity", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("parity")

# The tensors are tiny: a second thread waits more than it saves.
torch.set_num_threads(1)
