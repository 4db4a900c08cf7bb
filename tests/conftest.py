"""Set up before any test module imports MLX."""

import json
import os
from functools import cache

import pytest
import torch
from hypothesis import settings

from parity.environment import prepare_environment

prepare_environment()

# No deadline: the first call of a kernel is slow. On CI the same examples are drawn at every run.
settings.register_profile("parity", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("parity")

# The tensors are tiny: a second thread waits more than it saves.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """checkpoint("F2") is a tiny checkpoint of that variant."""
    from parity.cases.resources import fixtures_path
    from parity.jobs.fixture import write_fixture

    root = tmp_path_factory.mktemp("checkpoints")
    flash = json.loads((fixtures_path() / "configs" / "flash.json").read_text())
    return cache(lambda variant: write_fixture(root / variant, flash, variant))
