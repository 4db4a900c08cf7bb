"""How a checkpoint stores its tensors."""

import json
from pathlib import Path


def dtypes(folder: Path) -> set[str]:
    """The dtypes of a checkpoint's tensors by safetensors' names, read from the headers: F32, BF16, F8_E4M3, I64."""
    found = set()
    for shard in folder.glob("model*.safetensors"):
        with shard.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        found |= {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
    return found


def all_float32(folder: Path) -> bool:
    """Whether every floating tensor that is not packed is float32: such a checkpoint asks for a model in float32,
    whatever its config says."""
    return not dtypes(folder) & {"BF16", "F16", "F64"}
