"""pytest tests/test_report_action.py — the Action and the example workflow: rights, pins, no script injection."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
WORKFLOW = yaml.safe_load((ROOT / "docs" / "example-workflow.yml").read_text(encoding="utf-8"))
SCHEDULED = yaml.safe_load((ROOT / "docs" / "scheduled-workflow.yml").read_text(encoding="utf-8"))
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}
HOSTILE = 'x\'; $(touch owned); `touch owned` "--html=/y" && false'

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the action's scripts are written for bash")


def used():
    return [step["uses"] for job in WORKFLOW["jobs"].values() for step in job["steps"] if "uses" in step] + [
        step["uses"] for step in STEPS.values() if "uses" in step
    ]


def test_everything_used_is_pinned():
    assert len(used()) == 5
    for name in used():
        assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+\.\d+\.\d+|[0-9a-f]{40})", name), name


def test_inputs_reach_scripts_as_variables_only():
    scripts = [step["run"] for step in STEPS.values() if "run" in step]
    scripts += [step["run"] for job in WORKFLOW["jobs"].values() for step in job["steps"] if "run" in step]
    assert len(scripts) == 4
    assert not [script for script in scripts if "${{" in script or "eval" in script]
    for name in ("candidate", "profile", "require", "options"):
        assert STEPS["Judge"]["env"][name.upper()] == f"${{{{ inputs.{name} }}}}"
    given = set(re.findall(r"inputs\.([\w-]+)", json.dumps(ACTION["runs"])))
    assert given == set(ACTION["inputs"])


def test_workflow_has_the_least_rights():
    events = WORKFLOW[True]  # YAML 1.1 reads the key `on` as a truth value
    assert set(events) == {"pull_request", "push"}
    assert WORKFLOW["permissions"] == {"contents": "read"}
    for job in WORKFLOW["jobs"].values():
        assert "permissions" not in job
        assert job["timeout-minutes"] <= 30
        checkouts = [step for step in job["steps"] if step.get("uses", "").startswith("actions/checkout@")]
        assert [step["with"]["persist-credentials"] for step in checkouts] == [False]


def test_neither_needs_a_secret_nor_comments():
    for path in ("action.yml", "docs/example-workflow.yml"):
        text = re.sub(r"#.*", "", (ROOT / path).read_text(encoding="utf-8"))
        assert not re.search(r"secrets|github\.token|GITHUB_TOKEN|pull_request_target|github-script|comment", text), (
            path
        )


def test_workflow_gives_only_known_inputs():
    (step,) = (step for step in WORKFLOW["jobs"]["gate"]["steps"] if "dsv4-parity@" in step.get("uses", ""))
    assert set(step["with"]) <= set(ACTION["inputs"])
    assert {name for name, about in ACTION["inputs"].items() if about.get("required")} <= set(step["with"])


@pytest.fixture
def step(tmp_path):
    """step(name, program, **variables) runs a step's script with a stand-in for the one program that it calls."""
    (tmp_path / "bin").mkdir()

    def run(name, program, code=0, **variables):
        stand_in = tmp_path / "bin" / program
        stand_in.write_text(
            f'#!/usr/bin/env bash\nprintf "%s\\n" "$@" > "{tmp_path}/arguments"\n'
            'while [ $# -gt 0 ]; do if [ "$1" = --markdown ]; then echo "## verdict" > "$2"; fi; shift; done\n'
            f"exit {code}\n"
        )
        stand_in.chmod(0o755)
        environment = {
            "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "RUNNER_TEMP": str(tmp_path),
            "GITHUB_OUTPUT": str(tmp_path / "output"),
            "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
        }
        # As GitHub runs it: `shell: bash` is bash with -e and pipefail.
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", STEPS[name]["run"]]
        done = subprocess.run(command, env=environment | variables, cwd=tmp_path, capture_output=True, text=True)
        called = tmp_path / "arguments"
        return done, called.read_text().splitlines() if called.exists() else []

    return run


def test_judge_step(step, tmp_path):
    done, arguments = step("Judge", "parity", 1, CANDIDATE="a b.py", PROFILE="quick", REQUIRE="decode batch\nmtp")
    assert done.returncode == 0, done.stderr
    assert arguments[:5] == ["gate", "--profile=quick", "--require=decode", "--require=batch", "--require=mtp"]
    assert arguments[-2:] == ["--", "a b.py"]
    assert arguments[5] == "--json"
    assert {"--json", "--html", "--markdown", "--junit", "--sarif"} <= set(arguments)
    outputs = dict(line.split("=", 1) for line in (tmp_path / "output").read_text().splitlines())
    assert outputs["exit-code"] == "1"
    assert Path(outputs["report"], "summary.md").read_text() == "## verdict\n"
    assert (tmp_path / "summary").read_text() == "## verdict\n"


def test_judge_step_passes_further_options(step):
    done, arguments = step(
        "Judge", "parity", CANDIDATE="hf", PROFILE="full", REQUIRE="", OPTIONS="--strict\n--only rope.scores"
    )
    assert done.returncode == 0, done.stderr
    assert arguments[: arguments.index("--json")] == ["gate", "--profile=full", "--strict", "--only", "rope.scores"]


def test_judge_step_runs_nothing_that_an_option_says(step, tmp_path):
    done, arguments = step("Judge", "parity", CANDIDATE="hf", PROFILE="full", REQUIRE="", OPTIONS=HOSTILE)
    assert done.returncode == 0, done.stderr
    assert arguments[2 : arguments.index("--json")] == HOSTILE.split()
    assert not list(tmp_path.rglob("owned"))


def test_judge_step_runs_nothing_that_an_input_says(step, tmp_path):
    done, arguments = step("Judge", "parity", CANDIDATE=HOSTILE, PROFILE=HOSTILE, REQUIRE=HOSTILE)
    assert done.returncode == 0, done.stderr
    assert arguments[-1] == HOSTILE
    assert arguments[1] == f"--profile={HOSTILE}"
    assert [name for name in arguments[2 : arguments.index("--json")] if not name.startswith("--require=")] == []
    assert not list(tmp_path.rglob("owned"))


def test_install_step(step):
    assert step("Install dsv4-parity", "python", VERSION="", ACTION="/an action")[1][-1] == "/an action"
    assert step("Install dsv4-parity", "python", VERSION="0.1.0", ACTION="/a")[1][-1] == "dsv4-parity==0.1.0"


@pytest.mark.parametrize("code", [0, 1, 5])
def test_verdict_step_ends_with_the_gates_exit_code(step, code):
    assert step("Verdict", "parity", CODE=str(code))[0].returncode == code


def test_options_of_the_action_are_the_commands():
    from parity import cli

    flags = set(re.findall(r"(--[a-z]+)", STEPS["Judge"]["run"]))
    options = cli.parser().parse_args(["gate", "--require=oneshot", "--profile=full", "--", "x"])
    assert (options.require, options.profile, options.candidate) == (["oneshot"], "full", "x")
    assert {flag.removeprefix("--") for flag in flags} <= set(vars(options))


def test_the_scheduled_workflow_runs_sessions_that_exist():
    sessions = re.findall(
        r"^@nox.session.*\ndef (\w+)", (ROOT / "noxfile.py").read_text(encoding="utf-8"), re.MULTILINE
    )
    (job,) = SCHEDULED["jobs"].values()
    asked = [line.split()[1] for line in job["strategy"]["matrix"]["session"]]
    assert asked == ["newest", "floors", "tests"]
    assert {*asked, "lock"} <= set(sessions)
    assert SCHEDULED["permissions"] == {"contents": "read"}
    assert not [step["run"] for step in job["steps"] if "${{" in step.get("run", "")]
    assert {step["uses"] for step in job["steps"] if "uses" in step} <= set(used())
