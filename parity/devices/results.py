"""What was measured on a device, as plain data with a JSON round trip; imports no array library.

exp = calibration.figures["exp", "float32"]
exp.rms, exp.largest    in ulps of `exp.unit`
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field

SCHEMA = "dsv4-parity/device/1"
DEVICES = ("cpu", "gpu")
BITS = {"float32": 24, "bfloat16": 8}  # of the significand, the hidden one included
UNITS = {
    "result": "the exact result",
    "terms": "the sum's terms: the larger of the exact result and the root of the sum of their squares",
    "amplitude": "the amplitude, 1",
    "angle": "the amplitude (1 of a sine, the length of a rotated pair) times the angle, where that is above 1",
}
LARGEST = 1e30  # stands for an error without bounds (NaN, an infinity), which JSON does not know


@dataclass(frozen=True)
class Figure:
    """The error of one primitive in one type against float64.

    `rms` and `largest` count ulps of `dtype` at the magnitude that `unit` names (a key of UNITS); a result that is
    rounded once and otherwise exact has about 0.3 and at most 0.5. `absolute` is the largest error itself. `terms` is
    how many terms each sum had, 0 where there is none; `count` is how many results were looked at.
    """

    unit: str
    terms: int
    count: int
    rms: float
    largest: float
    absolute: float

    def __post_init__(self):
        if self.unit not in UNITS:
            raise ValueError(f"unit {self.unit!r} is unknown")
        for name, kind in {"terms": int, "count": int, "rms": float, "largest": float, "absolute": float}.items():
            value = getattr(self, name)
            if type(value) is not kind or not value >= 0 or not math.isfinite(value):
                raise ValueError(f"{name} is {value!r}")


@dataclass(frozen=True)
class Device:
    """What the figures depend on: the kind (`cpu` or `gpu`), the chip, the system and its driver, the BLAS that is
    loaded, MLX's version."""

    kind: str
    chip: str
    system: str
    driver: str
    blas: tuple[str, ...]
    mlx: str

    @classmethod
    def from_dict(cls, found: dict) -> Device:
        """Raises ValueError, KeyError or TypeError where it is none."""
        texts = {name: found[name] for name in ("kind", "chip", "system", "driver", "mlx")}
        if not all(isinstance(one, str) for one in [*texts.values(), *found["blas"]]) or found["kind"] not in DEVICES:
            raise ValueError("no device")
        return cls(**texts, blas=tuple(found["blas"]))


@dataclass(frozen=True)
class Calibration:
    """The figures of a device by (primitive, dtype), and `missing`: why a primitive could not be measured there."""

    device: Device
    figures: dict[tuple[str, str], Figure] = field(default_factory=dict)
    missing: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def flushes_subnormals(self) -> bool:
        """Whether a product that is too small for a normal float32 becomes 0 instead of a subnormal number."""
        figure = self.figures.get(("subnormals.product", "float32"))
        return figure is not None and figure.rms > 1

    def to_dict(self) -> dict:
        rows = lambda table, told: [  # noqa: E731
            {"primitive": name, "dtype": dtype} | told(value) for (name, dtype), value in table.items()
        ]
        return {
            "device": dataclasses.asdict(self.device) | {"blas": list(self.device.blas)},
            "flushes_subnormals": self.flushes_subnormals,
            "figures": rows(self.figures, dataclasses.asdict),
            "missing": rows(self.missing, lambda reason: {"reason": reason}),
        }

    @classmethod
    def from_dict(cls, found: dict) -> Calibration:
        """Raises ValueError, KeyError, TypeError or AttributeError where it is none."""
        names = [one.name for one in dataclasses.fields(Figure)]
        return cls(
            Device.from_dict(found["device"]),
            _by_key(found["figures"], lambda row: Figure(**{name: row[name] for name in names})),
            _by_key(found["missing"], lambda row: str(row["reason"])),
        )


def _by_key(rows: list[dict], read: Callable) -> dict:
    table = {(str(row["primitive"]), str(row["dtype"])): read(row) for row in rows}
    if len(table) != len(rows) or not {dtype for _, dtype in table} <= {*BITS}:
        raise ValueError("a primitive twice, or in a type that is not measured")
    return table


def document(calibrations: list[Calibration]) -> dict:
    """What `parity device --json` writes."""
    return {"schema": SCHEMA, "devices": [one.to_dict() for one in calibrations]}
