"""What a run stands on: library versions, and float32 products that keep float32's bits.

`prepare_environment` goes first, before anything imports MLX; `check_environment` refuses what would break
parity silently and returns the facts for the report.
"""

import functools
import importlib
import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet

from .errors import BadEnvironment

# The ranges of pyproject.toml, which a test compares with these.
SUPPORTED = {
    "mlx": ">=0.31.2,<0.33",
    "mlx-lm": ">=0.31.3,<0.33",
    "torch": ">=2.7,<2.14",
}
REPORTED = (*SUPPORTED, "numpy", "safetensors", "hypothesis")

TF32_VARIABLE = "MLX_ENABLE_TF32"

# Relative RMS error of a float32 product with 512 terms: TF32, which keeps 10 bits of mantissa, gives 7.7e-4;
# float32 gives 2.4e-7 to 4.2e-7, as the order of summation goes. The limit is far from both.
MATMUL_ERROR_LIMIT = 1e-5

# 512 terms a sum; 256 rows and columns, because MLX gives small outputs to its split-K kernel instead of the
# general one that a prefill runs through.
MATMUL_SHAPE = (256, 512, 256)

MATMUL_ADVICE = {
    "mlx": f"start a new process with {TF32_VARIABLE}=0, which MLX reads once, before its first operation",
    "torch": "unset ONEDNN_DEFAULT_FPMATH_MODE and leave torch.set_float32_matmul_precision at 'highest'",
}


def prepare_environment() -> None:
    """Turn MLX's TF32 products off for this process and its children; to be called before MLX is imported."""
    os.environ.setdefault(TF32_VARIABLE, "0")


def use_one_thread() -> None:
    """Let torch use one thread: the tensors are tiny, a second one waits more than it saves, and with one the sums are
    the same on every machine."""
    import torch

    torch.set_num_threads(1)


def check_environment() -> dict[str, object]:
    """Return the facts for the report, or raise `BadEnvironment` with one sentence that says what to do."""
    _check_tf32_variable()
    for name in SUPPORTED:
        _check_version(name)
    for module in ("mlx.core", "torch"):
        _check_import(module)
    for library in MATMUL_ADVICE:
        _check_matmul(library)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: installed_version(name) for name in REPORTED},
        "mlx_device": mlx_device(),
        "blas": loaded_blas(),
        "fp32_matmul_error": {library: matmul_error(library) for library in MATMUL_ADVICE},
    }


def installed_version(name: str) -> str | None:
    """Return the version of the distribution `name`, None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def matmul_error(library: str) -> float:
    """Measure the relative RMS error of a float32 product in `library` ("mlx" or "torch") against float64."""
    import numpy as np

    rows, terms, columns = MATMUL_SHAPE
    rng = np.random.default_rng(0)
    a = rng.standard_normal((rows, terms), dtype=np.float32)
    b = rng.standard_normal((terms, columns), dtype=np.float32)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    if library == "mlx":
        import mlx.core as mx

        product = np.array(mx.array(a) @ mx.array(b))
    else:
        import torch

        product = (torch.from_numpy(a) @ torch.from_numpy(b)).numpy()
    return float(np.sqrt(np.mean((product - exact) ** 2) / np.mean(exact**2)))


def mlx_device() -> str:
    """Return MLX's default device and the chip's name."""
    import mlx.core as mx

    return f"{mx.default_device()} {mx.device_info().get('device_name', '')}".strip()


def loaded_blas() -> list[str]:
    """Return the names of the BLAS libraries that this process has loaded, as far as the system tells."""
    if sys.platform == "darwin":
        return ["Accelerate"]
    maps = Path("/proc/self/maps")
    names = re.findall(r"([^/\s]*(?:blas|mkl)[^/\s]*\.so[^/\s]*)$", maps.read_text(), re.MULTILINE)
    return sorted(set(names))


def _check_tf32_variable() -> None:
    value = os.environ.get(TF32_VARIABLE, "0")
    if value != "0":
        raise BadEnvironment(
            f"{TF32_VARIABLE} is set to {value!r}; with anything but 0, MLX may multiply float32 matrices in "
            "TF32 (relative error 7.7e-4 instead of 2.9e-7): unset it or set it to 0."
        )


def _pip_command(name: str) -> str:
    # On Linux, plain `mlx` comes without a backend.
    extra = "[cpu]" if name == "mlx" and sys.platform == "linux" else ""
    return f'pip install "{name}{extra}{SUPPORTED[name]}"'


def _check_version(name: str) -> None:
    found = installed_version(name)
    if found is None:
        raise BadEnvironment(f"{name} is not installed; supported are {SUPPORTED[name]}: run {_pip_command(name)}")
    if not SpecifierSet(SUPPORTED[name]).contains(found, prereleases=True):
        raise BadEnvironment(f"{name} {found} is installed; supported are {SUPPORTED[name]}: run {_pip_command(name)}")


def _check_import(module: str) -> None:
    name = module.partition(".")[0]
    try:
        importlib.import_module(module)
    except (ImportError, OSError) as error:
        # A loader's message may have several lines; the first names the library that is missing.
        reason = str(error).partition("\n")[0]
        raise BadEnvironment(
            f"{name} {installed_version(name)} is installed but cannot be imported ({reason}): run {_pip_command(name)}"
        ) from error


def _check_matmul(library: str) -> None:
    error = matmul_error(library)
    if not error < MATMUL_ERROR_LIMIT:
        raise BadEnvironment(
            f"{library} multiplies float32 matrices with a relative error of {error:.1e}, where float32 "
            f"stays below {MATMUL_ERROR_LIMIT:.0e}, so TF32 or the like is on: {MATMUL_ADVICE[library]}."
        )
