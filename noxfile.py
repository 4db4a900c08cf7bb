"""The project's commands: `nox -l` lists them, `nox -s NAME -- ARGUMENT...` runs one."""

import sys
import tempfile
from pathlib import Path

import nox
from packaging.requirements import Requirement

nox.needs_version = ">=2025.5.1"
# pip and venv come with Python, and pip honours the user's own pip configuration; uv has one of its own.
nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["parity"]

PYPROJECT = nox.project.load_toml("pyproject.toml")
# A new minor release of ruff may format differently.
RUFF = "ruff>=0.17,<0.18"

# mlx-vlm: the first release with DeepSeek-V4 that runs on a supported mlx, and some since. transformers: the first with
# DeepSeek-V4, the one after it, and the first sound one.
RELEASES = [
    *(f"mlx-vlm=={version}" for version in ("0.6.3", "0.6.14", "0.7.3", "0.7.10")),
    *(f"transformers=={version}" for version in ("5.8.0", "5.8.1", "5.10.1")),
]
PEER = "mlx-vlm==0.7.10"  # what the speed of dsv4_mlx is measured beside, and transformers
CANDIDATES = {"mlx-vlm": "mlx_vlm.models.deepseek_v4", "transformers": "hf"}

shared_bin: Path


@nox.session
def environment(session: nox.Session) -> None:
    """Install the project and its dependencies once, for every session that computes."""
    global shared_bin
    session.install("--editable", ".[test]")
    shared_bin = Path(session.bin)


def run_shared(session: nox.Session, program: str, *arguments: str, env: dict[str, str] | None = None) -> None:
    """Run a program of the shared environment: torch and MLX take a minute and a gigabyte to install."""
    session.run(str(shared_bin / program), *arguments, env=env, external=True)


@nox.session(venv_backend="none", requires=["environment"])
def parity(session: nox.Session) -> None:
    """Judge every submodule: reference, MLX model and harness side by side (`parity run`)."""
    run_shared(session, "parity", "run", *session.posargs)


@nox.session(venv_backend="none", requires=["environment"])
def golden(session: nox.Session) -> None:
    """Replay the recorded vectors through both implementations (`parity golden`)."""
    recorded = sorted(str(path) for path in Path("fixtures/golden").iterdir())
    run_shared(session, "parity", "golden", *(session.posargs or recorded))


@nox.session(venv_backend="none", requires=["environment"])
def tests(session: nox.Session) -> None:
    """Run the tests (pytest)."""
    run_shared(session, "pytest", *session.posargs)


@nox.session(venv_backend="none", requires=["environment"])
def browser(session: nox.Session) -> None:
    """Drive the report's page in a headless browser (needs Debian's chromium, or another one on the PATH)."""
    run_shared(
        session, "pytest", "-m", "browser", "tests/browser", *session.posargs, env={"PARITY_REQUIRE_BROWSER": "1"}
    )


@nox.session(venv_backend="none", requires=["environment"])
def gate(session: nox.Session) -> None:
    """Judge dsv4_mlx and Hugging Face's model, or the candidate that is named (`parity gate`)."""
    for candidate in [session.posargs] if session.posargs else (["dsv4_mlx"], ["hf"]):
        run_shared(session, "parity", "gate", *candidate)


@nox.session(venv_backend="none", requires=["environment"])
def defects(session: nox.Session) -> None:
    """Put every known defect into dsv4_mlx and write the mutation score into the docs (half an hour)."""
    run_shared(session, "parity", "defects", "--profile", "full", "--table", "docs/defects.md", *session.posargs)


@nox.session
@nox.parametrize("release", RELEASES)
def released(session: nox.Session, release: str) -> None:
    """Judge a released port, in an environment of its own, and write the table of all of them into the docs."""
    session.install(".", release)
    folder = Path("docs", "released")
    folder.mkdir(exist_ok=True)
    report = folder / f"{release.replace('==', '-')}.json"
    arguments = (CANDIDATES[release.split("==")[0]], "--profile", "full", "--json", str(report), *session.posargs)
    session.run("parity", "gate", *arguments, success_codes=[0, 1])
    session.run("python", "-m", "parity.report.released", str(folder), "docs/released.md")


@nox.session(requires=["environment"])
def bench(session: nox.Session) -> None:
    """Measure the pairs' examples and the model's tokens per second, peers beside it (pytest-benchmark)."""
    # In an environment of its own, as transformers has one in the shared one. On Linux, mlx alone has no backend.
    session.install(PEER, *(["mlx[cpu]"] if sys.platform == "linux" else []))
    options = ["--vlm-python", str(Path(session.bin, "python")), "--speed-report", "docs/speed"]
    saved = f"--benchmark-json={Path(session.create_tmp(), 'benchmark.json')}"
    run_shared(
        session, "pytest", "tests/bench", "--benchmark-enable", "--benchmark-only", saved, *options, *session.posargs
    )


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting (ruff)."""
    session.install(RUFF)
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check", *session.posargs)


@nox.session(venv_backend="none", requires=["environment"])
def wheel(session: nox.Session) -> None:
    """Build the wheel, look at what lands in site-packages, and run it far from the checkout."""
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder, "site")
        run_shared(session, "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ".")
        (built,) = Path(folder).glob("*.whl")
        run_shared(session, "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(built))
        packages = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} - {"bin"}
        if packages != {"dsv4_mlx", "parity", "reference_torch"}:
            session.error(f"the wheel puts {sorted(packages)} into site-packages")
        case = site / "parity" / "fixtures" / "golden" / "clamp_exact"
        with session.chdir(folder):
            program = str(site / "bin" / "parity")
            session.run(program, "golden", str(case), env={"PYTHONPATH": str(site)}, external=True)


@nox.session
def floors(session: nox.Session) -> None:
    """Run the tests on the lowest versions that the ranges admit (on Linux: 6 GB, as torch brings CUDA)."""
    project = PYPROJECT["project"]
    declared = map(Requirement, [*project["dependencies"], *project["optional-dependencies"]["test"]])
    lowest = [
        f"{requirement.name}=={specifier.version}"
        for requirement in declared
        if requirement.marker is None or requirement.marker.evaluate()
        for specifier in requirement.specifier
        if specifier.operator == ">="
    ]
    constraints = Path(session.create_tmp(), "floors.txt")
    constraints.write_text("\n".join(lowest))
    session.install("--constraint", str(constraints), "--editable", ".[test]")
    session.run("pytest", *session.posargs)
