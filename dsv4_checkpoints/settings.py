"""What a config says about quantisation: a default and modules of their own settings, in whatever names."""

import reprlib
from typing import NamedTuple

from .errors import CheckpointError, shown
from .family import plain
from .formats import AFFINE_BITS, AFFINE_GROUPS, SCALED, Format

DEFAULTS = {kind: (bits, group) for (bits, group), kind in SCALED.items()} | {"affine": (4, 64)}
SCALARS = {"group_size", "bits", "mode", "quant_method"}


class Settings(NamedTuple):
    """``modules``: module path without prefix -> its format, or None for an explicit ``false``."""

    default: Format | None
    modules: dict[str, Format | None]

    @classmethod
    def of(cls, config: dict) -> "Settings | None":
        """From a parsed ``config.json``; None where it has nothing about MLX's formats. Raises CheckpointError."""
        told = config.get("quantization")
        if told is None:
            told = config.get("quantization_config")
            if told is None or (isinstance(told, dict) and "bits" not in told and "mode" not in told):
                return None  # as published: fp8's settings follow from the tensors
        if not isinstance(told, dict):
            raise CheckpointError(f"the config's quantization is {reprlib.repr(told)}; it must be an object.")
        default = stated("quantization", told) if {"bits", "mode"} & told.keys() else None
        modules = {}
        for path, one in told.items():
            if path in SCALARS or not isinstance(one, (dict, bool)):
                continue
            if one is True:
                modules[plain(path)] = default
            else:
                modules[plain(path)] = stated(path, one) if one is not False else None
        return cls(default, modules)


def stated(path: str, told: dict) -> Format:
    """The format that settings name, with MLX's defaults. Raises CheckpointError."""
    mode = told.get("mode", "affine")
    if not isinstance(mode, str) or mode not in DEFAULTS:
        raise CheckpointError(
            f"the config quantises {shown(path)} in mode {reprlib.repr(mode)}; MLX has {', '.join(sorted(DEFAULTS))}."
        )
    bits, group = (told.get(key, usual) for key, usual in zip(("bits", "group_size"), DEFAULTS[mode], strict=True))
    known = [(bits, group) for bits in AFFINE_BITS for group in AFFINE_GROUPS] if mode == "affine" else [DEFAULTS[mode]]
    if (bits, group) not in known or isinstance(bits, bool):
        raise CheckpointError(
            f"the config quantises {shown(path)} with {reprlib.repr(bits)} bits in groups of {reprlib.repr(group)}, "
            f"which {mode} does not have."
        )
    return Format(mode, bits, group)
