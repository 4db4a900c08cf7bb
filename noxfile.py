"""The project's commands: `nox -l` lists them, `nox -s NAME -- ARGUMENT...` runs one."""

import re
import sys
import tempfile
from pathlib import Path

import nox
from nox.command import CommandFailed
from packaging.requirements import Requirement

nox.needs_version = ">=2025.5.1"
# pip and venv come with Python, and pip honours the user's own pip configuration; uv has one of its own.
nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["parity"]

PYPROJECT = nox.project.load_toml("pyproject.toml")
# The versions that everything here is tested with, as pip's constraints; `nox -s lock` writes it.
LOCK = Path("constraints.txt")
TOOLS = ["hatchling", "editables", "nox", "ruff"]

# mlx-vlm: the first release with DeepSeek-V4 that runs on a supported mlx, and some since. transformers: the first with
# DeepSeek-V4, the one after it, and the first sound one.
RELEASES = [
    *(f"mlx-vlm=={version}" for version in ("0.6.3", "0.6.14", "0.7.3", "0.7.10")),
    *(f"transformers=={version}" for version in ("5.8.0", "5.8.1", "5.10.1")),
    *("rapid-mlx==0.16.10", "jang==2.5.50", "mtplx==2.12.2", "gmlx==0.5.3"),
]
# What the speed of dsv4_mlx is measured beside, and transformers: what of the above runs on a CPU.
PEERS = ("mlx-vlm==0.7.10", "rapid-mlx==0.16.10", "mtplx==2.12.2", "jang==2.5.50")
CANDIDATES = {
    "mlx-vlm": "mlx_vlm.models.deepseek_v4",
    "transformers": "hf",
    "rapid-mlx": "rapid_mlx.models.deepseek_v4",
    "jang": "jang_tools.dsv4.mlx_model",
    "mtplx": "mtplx.models.deepseek_v4",
    "gmlx": "gmlx.models.deepseek_v4.model",
}
# A port that computes two things is judged as both; one whose dependencies are made for Apple silicon goes without.
SETTINGS = {"jang": ("DSV4_LONG_CTX=0", "DSV4_LONG_CTX=1")}
WITHOUT_DEPENDENCIES = ("gmlx",)

shared_bin: Path


@nox.session
def environment(session: nox.Session) -> None:
    """Install the project and its dependencies once, for every session that computes."""
    global shared_bin
    locked(session, *TOOLS)
    locked(session, "--no-build-isolation", "--editable", ".[test]")
    shared_bin = Path(session.bin)


def locked(session: nox.Session, *what: str) -> None:
    """Install in the versions of the lock: what was tested is what a fresh clone gets."""
    session.install("--constraint", str(LOCK), *what)


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
    """Run the tests (pytest), one process a core; with -- -m slow, what is too long for every commit."""
    spread = ("--numprocesses=auto", "--dist=worksteal")
    run_shared(session, "pytest", *spread, *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session(venv_backend="none", requires=["environment"])
def browser(session: nox.Session) -> None:
    """Drive the report's page in a headless browser (needs Debian's chromium, or another one on the PATH)."""
    run_shared(
        session, "pytest", "-m", "browser", "tests/browser", *session.posargs, env={"PARITY_REQUIRE_BROWSER": "1"}
    )


@nox.session(venv_backend="none", requires=["environment"])
def full_model(session: nox.Session) -> None:
    """Judge a whole checkpoint, a test a stage: -- --checkpoint DIR [--tokens WHAT] [--resume DIR]."""
    run_shared(session, "pytest", "-m", "full_model", "-rs", *session.posargs)


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
    name, version = release.split("==")
    if name in WITHOUT_DEPENDENCIES:
        session.install(".")
        session.install("--no-deps", release)
    else:
        session.install(".", release)  # not from the lock: the release says what it runs with
    folder = Path("docs", "released")
    folder.mkdir(exist_ok=True)
    for setting in SETTINGS.get(name, ("",)):
        variable, _, value = setting.partition("=")
        report = folder / f"{name}{setting and f' ({setting})'}-{version}.json"
        arguments = (CANDIDATES[name], "--profile", "full", "--json", str(report), *session.posargs)
        session.run("parity", "gate", *arguments, env={variable: value} if setting else {}, success_codes=[0, 1, 4])
    session.run("python", "-m", "parity.report.released", str(folder), "docs/released.md")


@nox.session(requires=["environment"])
def bench(session: nox.Session) -> None:
    """Measure the pairs' examples and the model's tokens per second, peers beside it; `-- --short` takes 3 minutes."""
    options = []
    for release in PEERS:
        name = release.partition("==")[0]
        folder = Path(session.virtualenv.location, name)  # of its own: the peers want different versions of MLX
        python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        if not python.exists():
            session.run("python", "-m", "venv", str(folder))
        # Some leave mlx-lm to whoever installs them; on Linux, mlx alone has no backend.
        wanted = (release, "mlx-lm", *(["mlx[cpu]"] if sys.platform == "linux" else []))
        session.run(str(python), "-m", "pip", "install", "--quiet", *wanted, external=True)
        options += ["--peer", f"{name}={python}"]
    report = Path(session.create_tmp() if "--short" in session.posargs else "docs", "performance")
    saved = f"--benchmark-json={Path(session.create_tmp(), 'benchmark.json')}"
    asked = ("--benchmark-enable", "--benchmark-only", saved, "--speed-report", str(report), *options)
    run_shared(session, "pytest", "tests/bench", *asked, *session.posargs)
    if "--short" not in session.posargs:
        run_shared(session, "python", "tests/bench/speed_table.py", str(report), "docs/performance.md")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting (ruff)."""
    locked(session, "ruff")
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check", *session.posargs)


@nox.session(venv_backend="none", requires=["environment"])
def wheel(session: nox.Session) -> None:
    """Build the wheel, look at what lands in site-packages, and run it far from the checkout."""
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder, "site")
        options = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
        run_shared(session, "pip", "wheel", *options, ".")
        (built,) = Path(folder).glob("*.whl")
        run_shared(session, "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(built))
        packages = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} - {"bin"}
        if packages != {"dsv4_checkpoints", "dsv4_mlx", "parity", "reference_torch"}:
            session.error(f"the wheel puts {sorted(packages)} into site-packages")
        case = site / "parity" / "fixtures" / "golden" / "clamp_exact"
        with session.chdir(folder):
            program = str(site / "bin" / "parity")
            session.run(program, "golden", str(case), env={"PYTHONPATH": str(site)}, external=True)


@nox.session
def lock(session: nox.Session) -> None:
    """Write constraints.txt: the newest versions that the ranges admit, those of what they need included."""
    newest_versions(session)
    lines = [f"{name}=={version}" for name, version in sorted(installed(session).items())]
    # What torch brings along for one kind of GPU is no part of it, so that a machine may have a build for the CPU.
    lines = [line for line in lines if not line.startswith(("nvidia-", "cuda-", "triton"))]
    LOCK.write_text("# Written by `nox -s lock`; used by every session.\n" + "\n".join(lines) + "\n")
    session.log(f"{len(lines)} versions in {LOCK}; now: nox -s tests")


@nox.session
def newest(session: nox.Session) -> None:
    """Run the tests on the newest versions that the ranges admit; warnings inside of libraries are failures there."""
    newest_versions(session)
    locked_versions = dict(line.split("==") for line in LOCK.read_text().splitlines() if "==" in line)
    moved = [
        f"{name} {locked_versions[name]} -> {version}"
        for name, version in installed(session).items()
        if locked_versions.get(name, version) != version
    ]
    said = f"moved since the lock: {', '.join(moved) or 'nothing'}"
    session.log(said)
    try:
        session.run("pytest", "-W", "error", *session.posargs)
    except CommandFailed:
        session.error(f"The tests are red on the newest versions; {said}")


def newest_versions(session: nox.Session) -> None:
    """Install the project and its tools in the newest versions that the ranges admit."""
    session.install("--upgrade", "--upgrade-strategy", "eager", *TOOLS, "--editable", ".[test]")


def installed(session: nox.Session) -> dict[str, str]:
    """Of the session's environment: the version of each package, without the mark of a build (2.13.0, not +cpu)."""
    listed = session.run("pip", "list", "--format=freeze", "--exclude-editable", silent=True)
    found = dict(re.findall(r"^([\w.-]+)==([^\s+]+)", listed, re.MULTILINE))
    return {name.lower().replace("_", "-"): version for name, version in found.items() if name != "pip"}


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
