"""What the environment check refuses, and the facts it returns.  Run: pytest tests/test_environment.py"""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from parity import environment
from parity.errors import BadEnvironment, BadInput, CandidateCrashed, ParityError


def refusal() -> str:
    """Return the sentence with which the check refuses."""
    with pytest.raises(BadEnvironment) as caught:
        environment.check_environment()
    assert caught.value.exit_code == 3
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def pretend(monkeypatch, name, version):
    real = environment.installed_version
    monkeypatch.setattr(environment, "installed_version", lambda n: version if n == name else real(n))


def test_facts_name_every_library_and_the_measured_error():
    facts = environment.check_environment()
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(facts["libraries"]) == {"mlx", "mlx-lm", "torch", "numpy", "safetensors", "hypothesis"}
    assert all(facts["libraries"].values())
    assert facts["mlx_device"].startswith("Device(")
    assert facts["blas"]
    for error in facts["fp32_matmul_error"].values():
        # No product of 512 terms is exact in float32: an error of zero would mean that nothing was measured.
        assert 0 < error < environment.MATMUL_ERROR_LIMIT


def test_table_of_ranges_is_that_of_pyproject():
    pyproject = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())
    requirements = [Requirement(line) for line in pyproject["project"]["dependencies"]]
    for name, supported in environment.SUPPORTED.items():
        declared = {str(r.specifier) for r in requirements if r.name == name}
        assert len(declared) == 1, f"pyproject.toml has {len(declared)} ranges for {name}"
        assert set(declared.pop().split(",")) == set(supported.split(","))


@pytest.mark.parametrize(
    ("platform", "name", "requirement"),
    [
        ("linux", "mlx", '"mlx[cpu]>=0.31.2,<0.33"'),
        ("darwin", "mlx", '"mlx>=0.31.2,<0.33"'),
        ("linux", "mlx-lm", '"mlx-lm>=0.31.3,<0.33"'),
        ("linux", "torch", '"torch>=2.7,<2.14"'),
    ],
)
def test_missing_library(monkeypatch, platform, name, requirement):
    pretend(monkeypatch, name, None)
    monkeypatch.setattr(sys, "platform", platform)
    supported = environment.SUPPORTED[name]
    expected = f"{name} is not installed; supported are {supported}: run pip install {requirement}"
    assert refusal() == expected


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("mlx", "0.31.1"),
        ("mlx", "0.33.0"),
        ("mlx-lm", "0.20.0"),
        ("torch", "2.6.0"),
        ("torch", "2.14.1+cu130"),
    ],
)
def test_library_outside_its_range(monkeypatch, name, version):
    pretend(monkeypatch, name, version)
    assert refusal().startswith(
        f"{name} {version} is installed; supported are {environment.SUPPORTED[name]}: run pip install "
    )


@pytest.mark.parametrize("version", ["2.13.0+cpu", "2.13.1.dev20261101"])
def test_local_and_development_versions_inside_the_range(monkeypatch, version):
    pretend(monkeypatch, "torch", version)
    assert environment.check_environment()["libraries"]["torch"] == version


def test_library_that_cannot_be_imported(monkeypatch):
    def import_module(name):
        raise ImportError("libmlx.so: cannot open shared object file\nmore lines of a loader")

    monkeypatch.setattr(environment.importlib, "import_module", import_module)
    version = environment.installed_version("mlx")
    assert refusal().startswith(
        f"mlx {version} is installed but cannot be imported "
        "(libmlx.so: cannot open shared object file): run pip install "
    )


@pytest.mark.parametrize("value", ["1", "", "off"])
def test_tf32_variable_set_by_the_user(monkeypatch, value):
    monkeypatch.setenv("MLX_ENABLE_TF32", value)
    assert refusal() == (
        f"MLX_ENABLE_TF32 is set to {value!r}; with anything but 0, MLX may multiply float32 matrices in "
        "TF32 (relative error 7.7e-4 instead of 2.9e-7): unset it or set it to 0."
    )


@pytest.mark.parametrize(
    ("library", "advice"),
    [("mlx", "start a new process with MLX_ENABLE_TF32=0"), ("torch", "unset ONEDNN_DEFAULT_FPMATH_MODE")],
)
@pytest.mark.parametrize(("error", "shown"), [(7.7e-4, "7.7e-04"), (float("nan"), "nan")])
def test_product_with_too_few_bits(monkeypatch, library, advice, error, shown):
    monkeypatch.setattr(environment, "matmul_error", lambda name: error if name == library else 3e-7)
    sentence = refusal()
    assert sentence.startswith(
        f"{library} multiplies float32 matrices with a relative error of {shown}, "
        "where float32 stays below 1e-05, so TF32 or the like is on: "
    )
    assert advice in sentence


def test_measure_sees_operands_rounded_to_tf32(monkeypatch):
    import mlx.core as mx
    import numpy as np

    def rounded(values):
        # TF32 keeps 10 of the 23 bits of the mantissa.
        bits = np.asarray(values).view(np.uint32)
        return real((((bits + 0x1000) >> 13) << 13).view(np.float32))

    real = mx.array
    monkeypatch.setattr(mx, "array", rounded)
    measured = environment.matmul_error.__wrapped__("mlx")
    assert 1e-4 < measured < 1e-3


def test_prepare_sets_the_variable_but_keeps_the_users(monkeypatch):
    monkeypatch.delenv("MLX_ENABLE_TF32")
    environment.prepare_environment()
    assert os.environ["MLX_ENABLE_TF32"] == "0"
    monkeypatch.setenv("MLX_ENABLE_TF32", "1")
    environment.prepare_environment()
    assert os.environ["MLX_ENABLE_TF32"] == "1"


def test_importing_the_module_imports_no_framework():
    code = "import sys, parity.environment; print([m for m in ('mlx', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_exit_codes():
    codes = {kind: kind.exit_code for kind in (BadInput, BadEnvironment, CandidateCrashed)}
    assert codes == {BadInput: 2, BadEnvironment: 3, CandidateCrashed: 4}
    assert all(issubclass(kind, ParityError) for kind in codes)
