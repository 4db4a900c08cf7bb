"""Which devices a judgement is made on, and how noisy they were measured to be."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch

from ..candidates.adapters import resolve
from ..devices.calibrating import calibration
from ..environment import MATMUL_ERROR_LIMIT, TF32_VARIABLE
from ..errors import BadEnvironment, BadInput, NoDevice
from ..judging.noise import DeviceNoise, on_device

CPU, GPU, BOTH = "cpu", "gpu", "both"


@dataclass(frozen=True)
class Plan:
    """first: where the maths is judged, empty where MLX knows one device only. second: the GPU where it comes as a
    column of its own. facts: the GPU's calibration as plain data, for the report's environment. accepted: whether the
    GPU is so noisy that defects hide, and that was accepted."""

    first: str = ""
    second: str = ""
    noise: DeviceNoise | None = None
    facts: dict = field(default_factory=dict)
    accepted: bool = False

    @contextlib.contextmanager
    def limits(self, device: str) -> Iterator[None]:
        """The null inside is that of this device."""
        with on_device(self.noise if device == GPU else None):
            yield

    @contextlib.contextmanager
    def here(self, device: str) -> Iterator[None]:
        """This process's MLX computes on this device, and the null is that of it."""
        with self.limits(device), using(device) if device else contextlib.nullcontext():
            yield

    @property
    def options(self) -> str:
        """What has to be said on the command line for the same devices on this machine."""
        said = f" --device {self.first}" if self.first and not self.second else ""
        return said + " --accept-noise" * self.accepted

    def alone(self) -> Plan:
        """The GPU without the CPU."""
        return replace(self, first=GPU, second="")


def asked(option: str | None, accept_noise: bool = False, tell: Callable[[str], None] = lambda sentence: None) -> Plan:
    """The plan of `--device`; None is both where there is a GPU, else the CPU. Raises NoDevice, BadEnvironment."""
    there = gpu_here()
    option = option or (BOTH if there else CPU)
    if option == CPU:
        return Plan(CPU if there else "")
    found = calibration(GPU, tell=tell)  # raises where there is none
    noise = DeviceNoise.of(found)
    products = noise.level("product", torch.float32)
    noisy = products > MATMUL_ERROR_LIMIT
    if noisy and not accept_noise:
        raise BadEnvironment(
            f"The GPU multiplies float32 matrices with a relative error of {products:.1e}, where float32 stays below "
            f"{MATMUL_ERROR_LIMIT:.0e}, though {TF32_VARIABLE} is 0; judge with --device cpu, or with --accept-noise "
            "and limits as wide as that."
        )
    plan = Plan(CPU, GPU, noise, {"calibration": {GPU: found.to_dict()}}, noisy)
    return plan.alone() if option == GPU else plan


def of(
    target: str, option: str | None, accept_noise: bool = False, tell: Callable[[str], None] = lambda sentence: None
) -> Plan:
    """The plan of a candidate of the gate. Raises BadInput too, where a device was asked for that it has no use of."""
    kind = resolve(target).kind
    if kind not in ("recording", "hf"):
        return asked(option, accept_noise, tell)
    if option in (None, CPU):
        return Plan()
    said = "is a recording, of whatever device it was made on" if kind == "recording" else "computes on the CPU"
    raise BadInput(f"{target} {said}; leave --device {option} away.")


def current(tell: Callable[[str], None] = lambda sentence: None) -> Plan:
    """The device that this process's MLX computes on anyway. Raises BadEnvironment."""
    return asked(GPU, tell=tell) if gpu_here() else Plan()


def gpu_here() -> bool:
    """Whether MLX computes on a GPU unless it is told otherwise."""
    import mlx.core as mx

    return mx.default_device().type == mx.DeviceType.gpu


@contextlib.contextmanager
def using(device: str) -> Iterator[None]:
    """MLX's default device of this process. Raises NoDevice."""
    import mlx.core as mx

    before = mx.default_device()
    try:
        mx.set_default_device(getattr(mx, device))
    except ValueError as error:
        raise NoDevice(f"MLX finds no {device} here ({error}).") from error
    try:
        yield
    finally:
        mx.set_default_device(before)
