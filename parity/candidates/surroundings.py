"""What a candidate's process finds around it: no secrets, no network, only its own folder, perhaps a compiler."""

from __future__ import annotations

import os
import re
import shutil
import site
import sys
from pathlib import Path

SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|_KEY$", re.IGNORECASE)


def variables(folder: Path, answers: int, memory: int) -> dict[str, str]:
    """For a process that works in this folder, answers through that pipe, and may take so many bytes."""
    kept = {name: value for name, value in os.environ.items() if not SECRET.search(name)}
    work = str(folder)
    folders = ("HOME", "TMPDIR", "TEMP", "TMP", "HF_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")
    folders += ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")  # torch sets the first one in its own process
    return (
        {"OMP_NUM_THREADS": "1", "PYTHONUSERBASE": site.getuserbase()}
        | kept
        | dict.fromkeys(folders, work)
        | {
            # On the CPU MLX compiles with g++, longer than all else takes: see `compiled`.
            "MLX_DISABLE_COMPILE": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "MLX_ENABLE_TF32": "0",
            "PARITY_ANSWERS": str(answers),
            "PARITY_MEMORY": str(memory),
        }
    )


def can_compile(device: str = "") -> bool:
    """Whether mx.compile works here: MLX compiles CPU kernels with g++ and fails where there is none, which would not
    be the port's fault; a GPU's driver has its own compiler."""
    compiler = sys.platform != "linux" or device == "gpu" or shutil.which("g++") is not None
    return "MLX_DISABLE_COMPILE" not in os.environ and compiler
