"""The gate as its users meet it: verdict, exit code, sentence, files; right ports, a wrong one, hostile ones.

Run: pytest tests/test_gate.py, and with -m slow the whole of Hugging Face's model and further hostile ones. What the
whole matrix is not needed for is judged by a few probes.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import mlx.core as mx
import numpy as np
import pytest
import torch

from parity import cli
from parity.candidates import process
from parity.candidates.adapters.problems import Hung
from parity.candidates.containment import landlock_version
from parity.gate import bundle, confirm, filling, loading, matrix
from parity.gate.defects import catalogue
from parity.gate.lives import CACHES, LIVES, SERVED
from parity.gate.matrix import NOT_ASKED
from parity.gate.probes import SCHEDULES, of_profile, registry
from parity.gate.results import SCHEMA, Candidate, Cell
from parity.jobs import gate
from parity.report import document
from parity.results import Verdict

CANDIDATES = Path(__file__).parent / "candidates"
# The whole model in less time, where what is looked at hangs neither on its tokens nor on each of Sinkhorn's steps.
LIGHT = {
    "tokens": 24,
    "prompt": 18,
    "chunks": (9, 1, 1, 6, 6, 1),
    "config": registry()["model.flash"].config | {"hc_sinkhorn_iters": 3},
}
REPOSITORY = CANDIDATES.parents[1]
# No port of MLX needs it; mlx-lm's transformers import it where it is, which takes seconds.
WITHOUT_TORCH = "import sys\nsys.modules['torch'] = None\n"


def path_of(name):
    return str(CANDIDATES / f"{name}.py")


def run(capsys, *arguments):
    """(exit code, standard output, standard error)"""
    code = cli.main(["gate", *arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    return code, captured.out, captured.err


def one_sentence(text):
    lines = text.strip().splitlines()
    return len(lines) == 1 and lines[0].startswith("parity: ") and lines[0][-1] in '.?"'


@pytest.fixture
def few(monkeypatch):
    """few("embedding", "mtp") leaves only these probes, with other `changes` where a test needs less of them."""

    def leave(*names, **changes):
        assert set(names) <= set(registry())
        if changes:  # no other test may have what the reference gives for these
            monkeypatch.setattr(filling, "KNOWN", {})
        monkeypatch.setattr(
            gate,
            "of_profile",
            lambda profile: [replace(p, **changes) for p in of_profile(profile) if p.mechanism in names],
        )

    return leave


@pytest.fixture
def unnamed(monkeypatch):
    """Called for the time where it makes no difference which defect explains what is red: none is known from here."""
    return lambda: monkeypatch.setattr(gate, "catalogue", dict)


@pytest.fixture
def judged(capsys, tmp_path):
    """judged(candidate, options ...) is the report, which is valid and has the exit code that the command had."""

    def judge(candidate, *options):
        target = tmp_path / "report.json"
        code, out, _ = run(capsys, candidate, *options, "--json", str(target))
        report = json.loads(target.read_text())
        jsonschema.validate(report, document.schema(SCHEMA))
        assert code == report["exit_code"] == Verdict(report["verdict"]).exit_code
        assert report["sentence"] in " ".join(out.split())  # the terminal says the same
        return report

    return judge


def verdicts(report, mechanism):
    return [cell["verdict"] for cell in report["cells"] if cell["mechanism"] == mechanism]


# --- right ports ---------------------------------------------------------------------------------------------


# The whole model, with its caches' lives and compiled, is what `nox -s gate` judges at every commit.
@pytest.mark.parametrize(
    "names",
    [
        pytest.param(("embedding", "weights.fp4", "mtp"), id="few"),
        pytest.param(("embedding", "model.flash"), id="whole", marks=pytest.mark.slow),
        pytest.param((), id="all", marks=pytest.mark.slow),
    ],
)
def test_dsv4_mlx_has_parity_in_every_cell(judged, few, names):
    if names:
        few(*names)
    report = judged("dsv4_mlx")
    assert report["exit_code"] == 0
    probes = gate.of_profile("quick")
    wanted = [(probe.mechanism, schedule) for probe in probes for schedule in probe.schedules]
    rows = [(row, LIVES) for row in (CACHES, *SERVED)] * any(probe.mechanism == "model.flash" for probe in probes)
    wanted += rows
    assert [(cell["mechanism"], cell["schedule"]) for cell in report["cells"]] == wanted
    assert {cell["verdict"] for cell in report["cells"]} == {"parity"}
    assert all(0 < cell["ratio"] <= 1 for cell in report["cells"])
    assert (report["gaps"], report["diagnosis"], report["first_deviation"], report["layers"]) == ([], [], None, [])
    assert f"{len(probes) + len(rows)} mechanisms, {len(wanted)} cells, every one agrees." in report["sentence"]


# --- published roundings ------------------------------------------------------------------------------------------

ROUNDING = ("experts.shared", "attention.window", "rope.compressed_layer", "indexer.scores", "weights.fp8")
SIMULATING = [("simulates_rows", ["X043", "X066"]), ("simulates_published", ["X043", "X066", "X093"])]


@pytest.mark.parametrize("candidate", [pytest.param(SIMULATING[0][0], marks=pytest.mark.slow), SIMULATING[1][0]])
def test_a_port_that_simulates_the_published_roundings_is_held_to_them(judged, few, candidate):
    few(*ROUNDING)
    report = judged(path_of(candidate))
    assert (report["verdict"], report["gaps"]) == ("parity", [])
    (note,) = report["notes"]
    assert note.startswith("Simulates published roundings, those of key-value rows")
    assert ("packed matrices" in note) == (candidate == "simulates_published")


@pytest.mark.slow
@pytest.mark.parametrize(("candidate", "defects"), SIMULATING)
def test_held_to_none_it_is_told_what_it_rounds(judged, few, candidate, defects):
    few(*ROUNDING)
    held_to_none = judged(path_of(candidate), "--simulation", "none")
    assert held_to_none["reproduce"].endswith("--simulation none")
    assert sorted(name for entry in held_to_none["diagnosis"] for name in entry["defects"]) == defects


LACKS = {"attention.window": "D031", "indexer.scores": "D062", "weights.fp8": "X094"}


@pytest.mark.parametrize("mechanisms", [["attention.window"], pytest.param([*LACKS], marks=pytest.mark.slow)])
def test_a_port_without_them_is_told_what_it_lacks(judged, few, mechanisms):
    few(*mechanisms)
    report = judged("dsv4_mlx", "--simulation", "published")
    named = {name for entry in report["diagnosis"] for name in entry["defects"]}
    assert named == {LACKS[one] for one in mechanisms}
    assert report["notes"][0].startswith("Held to published roundings, those of key-value rows")


STEPS = [
    (loading.PLAIN, "none", "rows"),
    *(pytest.param(form, "rows", "published", marks=pytest.mark.slow) for form in (loading.PLAIN, loading.PACKED)),
]


@pytest.mark.parametrize(("form", "less", "more"), STEPS)
def test_the_first_probe_that_shows_a_rounding_is_known(form, less, more):
    for probe in of_profile("quick"):
        before, after = (filling.reference(probe, 0, form, step) for step in (less, more))
        if not torch.equal(before.ids, after.ids) or not torch.equal(before.exact, after.exact):
            assert probe.mechanism == filling.shown_first(more, form)
            break


# What both the reference and the candidate give is computed anew: nothing may come from the first run.
def test_the_same_seed_gives_the_same_document_but_for_the_clock(judged, few, monkeypatch):
    few("embedding", "hc.comb")
    documents = []
    for seed, known in (("3", catalogue), ("3", catalogue), ("4", dict)):  # no defects: for the time
        monkeypatch.setattr(filling, "KNOWN", {})
        monkeypatch.setattr(gate, "catalogue", known)
        documents.append(judged(path_of("mixes_untransposed"), "--seed", seed) | {"clock": None})
    assert json.dumps(documents[0]) == json.dumps(documents[1])
    same, _, other = ([cell["ratio"] for cell in document["cells"]] for document in documents)
    assert all(one != another for one, another in zip(same, other, strict=True))
    assert documents[0]["seed"] == 3


def test_the_same_seed_gives_the_same_document_where_messages_differ(judged, few):
    few("embedding")
    first, second = (judged(path_of("raises_with_its_place")) | {"clock": None} for _ in range(2))
    assert "found no file in" in first["sentence"]
    assert json.dumps(first) == json.dumps(second)


HF_GAPS = ["router.softmax", "mtp"]


def hf_is_right(report):
    assert report["exit_code"] == 0
    for name in HF_GAPS:
        assert name in report["sentence"]
        assert set(verdicts(report, name)) == {"coverage gap"}
    said = {gap["what"]: gap["sentence"] for gap in report["gaps"]}
    assert "softmax" in said["router.softmax"]
    assert "could not load the probe's checkpoint" in said["router.softmax"]
    assert said["mtp"] == "mtp was not judged: Hugging Face's model has no MTP block."
    assert not any(gap["required"] for gap in report["gaps"])
    return said


def test_hugging_faces_model_has_parity_and_its_gaps_are_named(judged, few):
    few("embedding", "experts.shared", *HF_GAPS)
    report = judged("hf")
    assert list(hf_is_right(report)) == HF_GAPS
    assert verdicts(report, "embedding") == verdicts(report, "experts.shared") == ["parity"] * 5


@pytest.mark.slow
def test_hugging_faces_whole_model_has_parity(judged):
    report = judged("hf")
    said = hf_is_right(report)
    judged_cells = [cell for cell in report["cells"] if cell["mechanism"] not in said]
    assert {cell["verdict"] for cell in judged_cells} == {"parity"}
    assert {cell["mechanism"] for cell in judged_cells} >= {"model.flash", "model.pro", "indexer.rope", "hc.norm"}


# --- a wrong port --------------------------------------------------------------------------------------------

CHAIN = ("embedding", "experts.shared", "hc.post", "hc.pre", "hc.comb", "hc.sinkhorn")


def test_an_untransposed_matrix_is_found_and_named_and_shown(judged, few, monkeypatch, tmp_path):
    few(*CHAIN)
    monkeypatch.chdir(CANDIDATES.parent)
    wrong, log, folder = path_of("mixes_untransposed"), tmp_path / "log.sarif", tmp_path / "case"
    report = judged(wrong, "--sarif", str(log), "--bundle", str(folder))
    assert (report["exit_code"], report["verdict"]) == (1, "diverges")
    assert (report["first_deviation"]["mechanism"], report["first_deviation"]["schedule"]) == ("hc.comb", "oneshot")
    assert "deviates first in hc.comb" in report["sentence"]
    assert set(verdicts(report, "hc.comb")) == {"diverges"}
    assert {v for name in CHAIN[:4] for v in verdicts(report, name)} == {"parity"}  # streams alike, or all muted
    assert [entry["defects"] for entry in report["diagnosis"]] == [["D016"]]
    assert "D016" in report["diagnosis"][0]["sentence"]
    assert report["diagnosis"][0]["formula"] == ["X'_k = post_k v + sum_j comb_jk X_j"]
    red = [cell for cell in report["cells"] if cell["verdict"] == "diverges"]
    assert report["diagnosis"][0]["explained"] == report["diagnosis"][0]["red"] == len(red)
    assert all(cell["explained_by"] == ["D016"] for cell in red)

    line = 1 + Path(wrong).read_text().splitlines().index("class Model(Base):")
    assert (report["candidate"]["source"], report["candidate"]["line"]) == (wrong, line)
    wrong_line = 1 + Path(wrong).read_text().splitlines().index("    mixed = comb @ norm.wide(streams)")
    (found,) = report["lines"]
    assert (found["kind"], found["defects"], found["at"]["line"]) == ("line", ["D016"], wrong_line)
    place = {"uri": "candidates/mixes_untransposed.py"}, (wrong_line, wrong_line)
    results = json.loads(log.read_text())["runs"][0]["results"]
    assert [(result["ruleId"], result["level"]) for result in results] == [("D016", "error")]
    (at,) = (one["physicalLocation"] for one in results[0]["locations"])
    assert (at["artifactLocation"], (at["region"]["startLine"], at["region"]["endLine"])) == place

    assert str(folder) in " ".join(report["notes"])
    assert len((folder / "show.py").read_text().splitlines()) <= 65
    case = json.loads((folder / "case.json").read_text())
    assert (case["mechanism"], case["schedule"]) == ("hc.comb", "oneshot")
    errors, limit = shown(folder, wrong, tmp_path)
    difference = np.abs(np.load(folder / "got.npy") - np.load(folder / "expected.npy")).max(-1)
    assert np.allclose(errors, difference.ravel(), rtol=0.01)  # the script prints three digits: half of 1 % at most
    assert errors.max() > 100 * limit
    assert errors[:-1].max(initial=0) <= limit < errors[-1]  # no token more than the smallest case needs
    errors, limit = shown(folder, path_of("unchanged"), tmp_path)
    assert errors.max() <= limit


def said_by(script, port, elsewhere):
    """What a bundle's script prints for a model file."""
    startup = elsewhere / "startup"
    startup.mkdir(exist_ok=True)
    (startup / "sitecustomize.py").write_text(WITHOUT_TORCH)
    done = subprocess.run(
        [sys.executable, str(script), port],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": f"{startup}{os.pathsep}{REPOSITORY}", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def shown(folder, port, elsewhere):
    """The errors that a bundle's script prints for a model file, and its limit; beyond it a line has an arrow."""
    said = said_by(folder / "show.py", port, elsewhere)
    *lines, last = [line for line in said.splitlines() if line.startswith(("row ", "limit: "))]
    limit = float(last.removeprefix("limit: ").partition(" ")[0])
    errors = [float(line.partition("largest error ")[2].partition(" ")[0]) for line in lines]
    assert [line.endswith("<--") for line in lines] == [error > limit for error in errors]
    return np.array(errors), limit


@pytest.mark.parametrize("mtp", [False, True])
@pytest.mark.parametrize("kind", bundle.LOADING)
def test_every_kinds_script_is_short_and_compiles(kind, mtp):
    probe = registry()["mtp" if mtp else "hc.comb"]
    family = filling.reference(probe, 0)
    cell = Cell(probe.mechanism, "chunks", Verdict.DIVERGES, 'says """\nand \\N')
    text = bundle.script(Candidate("some.port", kind), family, cell, probe.tokens)
    assert len(text.splitlines()) <= 40
    compile(text, "show.py", "exec")


# An engine that is this process: the script, in another one, must come to its numbers.
@pytest.mark.parametrize("name", [pytest.param("hc.comb", marks=pytest.mark.slow), "mtp"])
def test_a_bundle_of_another_kind_shows_what_the_package_gives(tmp_path, name):
    family = filling.reference(registry()[name], 0)
    larger = {"baseline": family.baseline * 1.01, "nulls": [null * 1.01 for null in family.nulls]}
    wrong = replace(family, exact=family.exact * 1.01, **larger)
    cell = Cell(name, "chunks", Verdict.DIVERGES, "logits differ")
    with gate.Process(gate.resolve("dsv4_mlx"), tmp_path, 60, 4) as process:
        folder = bundle.write(Candidate("dsv4_mlx", "dsv4_mlx"), process, wrong, cell, tmp_path / "case")
    errors, limit = shown(folder, "", tmp_path)
    assert errors[-1] > limit
    exact = wrong.exact[:1, : errors.size].float().numpy()
    np.save(folder / "expected.npy", exact / np.float32(1.01))
    errors, limit = shown(folder, "", tmp_path)
    assert errors.max() <= limit


def test_a_bundle_of_a_file_in_a_package_finds_the_package(judged, few, unnamed, tmp_path):
    few("embedding", "hc.comb")
    unnamed()
    port = tmp_path / "elsewhere" / "a_port"
    port.mkdir(parents=True)
    shutil.copy(path_of("mixes_untransposed"), port / "real.py")
    (port / "model.py").write_text("from .real import Model, ModelArgs\n")
    (port / "__init__.py").write_text(WITHOUT_TORCH)
    judged(str(port / "model.py"), "--bundle", str(tmp_path / "case"))
    errors, limit = shown(tmp_path / "case", "", tmp_path)
    assert errors[-1] > limit


def test_there_is_no_bundle_where_nothing_differs(judged, few, tmp_path):
    few("embedding")
    report = judged("dsv4_mlx", "--bundle", str(tmp_path / "case"))
    assert report["exit_code"] == 0
    assert report["notes"] == ["There is no bundle: no cell gave logits that differ."]
    assert not (tmp_path / "case").exists()


# The matrix is done when the bundle is written: what happens then must not cost it.
@pytest.mark.parametrize("name", ["fails_later", "recovers_later"])
def test_a_bundle_that_cannot_be_made_is_a_note(judged, few, unnamed, tmp_path, name):
    few("embedding")
    unnamed()
    report = judged(path_of(name), "--bundle", str(tmp_path / "case"))
    assert (report["exit_code"], report["verdict"]) == (1, "diverges")
    assert report["first_deviation"]["mechanism"] == "embedding"
    assert any("bundle" in note for note in report["notes"])
    assert not (tmp_path / "case").exists()


# --- what cannot be judged -----------------------------------------------------------------------------------


@pytest.fixture
def idle(monkeypatch):
    """No candidate may be started: a mistake on the command line is said before minutes of judging."""

    def start(*_):
        raise AssertionError("a candidate was started")

    monkeypatch.setattr(gate, "Process", start)


BAD = {
    "word": (("dsv4_mxl",), "did you mean 'dsv4_mlx'?"),
    "path": (("no/such/port.py",), "There is no file or folder no/such/port.py"),
    "folder without a port": (("empty",), "empty holds neither mlx_lm/models/deepseek_v4 nor"),
    "no Python": (("text.txt",), "text.txt is no Python file"),
    "profile": (("dsv4_mlx", "--profile", "fast"), "--profile does not know 'fast'; known: quick, full, exhaustive."),
    "require": (
        ("dsv4_mlx", "--require", "mpt"),
        "--require does not know 'mpt'; did you mean 'mtp'? known: oneshot, cached,",
    ),
    "no baseline": (("dsv4_mlx", "--baseline", "none.json"), "none.json cannot be read"),
    "baseline is a folder": (("dsv4_mlx", "--baseline", "empty"), "empty cannot be read"),
    "baseline is no JSON": (("dsv4_mlx", "--baseline", "text.txt"), "text.txt holds no JSON"),
    "baseline is no text": (("dsv4_mlx", "--baseline", "bytes"), "bytes holds no JSON"),
    "baseline is another document": (("dsv4_mlx", "--baseline", "other.json"), "the baseline is no report of"),
    "baseline lacks fields": (("dsv4_mlx", "--baseline", "short.json"), "the baseline does not follow"),
    "bundle exists": (("dsv4_mlx", "--bundle", "empty"), "empty exists; give --bundle a folder that is still"),
    "bundle in a file": (("dsv4_mlx", "--bundle", "text.txt/case"), "give --bundle another folder"),
    **{
        f"{name} in no folder": (
            ("dsv4_mlx", f"--{name}", "none/report"),
            f"none/report cannot be written; give --{name}",
        )
        for name in ("json", "html", "markdown", "junit", "sarif")
    },
    "html is a folder": (("dsv4_mlx", "--html", "empty"), "empty cannot be written; give --html a file"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_command_is_one_sentence_and_nothing_is_written(capsys, idle, monkeypatch, tmp_path, case):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("text.txt").write_text("no JSON")
    Path("bytes").write_bytes(b"\xff\xfe\x00")
    Path("other.json").write_text('{"schema": "dsv4-parity/report/1"}')
    Path("short.json").write_text(json.dumps({"schema": SCHEMA}))
    before = sorted(tmp_path.rglob("*"))
    arguments, words = BAD[case]
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, ""), err
    assert words in err
    assert one_sentence(err)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("option", ["--timeout", "--memory"])
@pytest.mark.parametrize("value", ["-1", "0", "nan", "inf", "soon"])
def test_limits_must_be_positive_numbers(capsys, idle, option, value):
    with pytest.raises(SystemExit) as caught:
        cli.main(["gate", "dsv4_mlx", option, value])
    captured = capsys.readouterr()
    assert (caught.value.code, captured.out) == (2, "")
    assert captured.err.splitlines()[-1] == f"parity gate: error: argument {option}: {value} is not a positive number"


def test_a_bad_command_has_a_document_where_one_was_asked_for(capsys, idle, tmp_path):
    target = tmp_path / "report.json"
    code, _, err = run(capsys, "no/such/port.py", "--json", str(target))
    report = json.loads(target.read_text())
    jsonschema.validate(report, document.schema(SCHEMA))
    assert (code, report["exit_code"], report["verdict"]) == (2, 2, "bad input")
    assert report["sentence"] in err
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_missing_imports_are_the_environments_fault(judged, few):
    few("embedding")
    report = judged(path_of("lacks_imports"))
    assert (report["exit_code"], report["verdict"]) == (3, "environment")
    assert report["sentence"] == "The candidate imports what is not installed: no_other_library, no_such_library."
    assert report["cells"] == []


# --- imports that are mended ---------------------------------------------------------------------------------


def test_a_file_that_lacks_names_of_typing_is_mended_where_asked(judged, few, unnamed, tmp_path):
    few("embedding", "hc.comb")
    report = judged(path_of("lacks_typing"))
    assert (report["verdict"], report["cells"], report["notes"]) == ("crashed", [], [])
    assert "(lacks_typing.py:12): name 'Any' is not defined" in report["sentence"]
    assert report["sentence"].endswith("; --mend-imports would supply it from typing and go on.")
    assert "--mend-imports" not in report["reproduce"]

    before = Path(path_of("lacks_typing")).read_bytes()
    kept = ("--bundle", str(tmp_path / "case"), "--record", str(tmp_path / "kept"))
    report = judged(path_of("lacks_typing"), "--mend-imports", *kept)
    assert (report["verdict"], report["first_deviation"]["mechanism"]) == ("diverges", "hc.comb")
    assert [entry["defects"] for entry in report["diagnosis"]] == [["D016"]]
    lacked = [("Any", "typing"), ("field", "dataclasses"), ("Sequence", "typing")]
    said = [f"The file lacks `{name}` of {source}; with --mend-imports it was supplied." for name, source in lacked]
    assert report["notes"][:3] == said
    assert report["reproduce"].endswith(" --mend-imports")
    assert Path(path_of("lacks_typing")).read_bytes() == before
    errors, limit = shown(tmp_path / "case", path_of("lacks_typing"), tmp_path)
    assert errors[-1] > limit
    unnamed()
    assert judged(str(tmp_path / "kept"))["notes"][:3] == said


def test_a_file_that_lacks_nothing_has_no_note(judged, few):
    few("embedding")
    report = judged(path_of("unchanged"), "--mend-imports")
    assert (report["exit_code"], report["notes"]) == (0, [])


@pytest.mark.parametrize(
    "line",
    [
        "x = Anything",  # no name of these modules
        "x = np.float32",
        "del Any",  # supplied in vain
        "def post(x):\n    Any = Any\npost(1)",  # UnboundLocalError
    ],
)
def test_other_names_are_not_mended(judged, few, tmp_path, line):
    few("embedding")
    (tmp_path / "port.py").write_text(f"from dsv4_mlx import Model, ModelArgs\n{line}\nx = Any\n")
    report = judged(str(tmp_path / "port.py"), "--mend-imports")
    assert (report["exit_code"], report["verdict"]) == (4, "crashed")
    assert "Error while it was imported (port.py:" in report["sentence"]
    assert len(report["notes"]) == (line == "del Any")  # once
    assert "--mend-imports" not in report["sentence"]


def test_names_that_are_missed_at_run_time_only_are_not_mended(judged, few, tmp_path):
    few("embedding")
    body = "class Model(Base):\n    def sanitize(self, weights):\n        return cast(dict, weights)\n"
    (tmp_path / "port.py").write_text(f"from dsv4_mlx import Model as Base, ModelArgs\n{body}")
    report = judged(str(tmp_path / "port.py"), "--mend-imports")
    assert report["verdict"] == "crashed"
    assert "name 'cast' is not defined" in report["sentence"]


def test_each_file_is_given_its_own_names(judged, few, tmp_path):
    few("embedding")
    port = tmp_path / "a_port"
    port.mkdir()
    (port / "__init__.py").write_text(WITHOUT_TORCH)
    (port / "helper.py").write_text("helped = Any\n")
    (port / "model.py").write_text(
        "from dsv4_mlx import Model, ModelArgs\nfrom . import helper\n"
        "assert 'Any' not in globals()\nx = Optional[int]\n"
    )
    report = judged(str(port / "model.py"), "--mend-imports")
    assert (report["exit_code"], len(report["notes"])) == (0, 2)
    assert report["notes"][0].startswith("helper.py lacks `Any` of typing;")
    assert report["notes"][1].startswith("The file lacks `Optional` of typing;")


def test_names_are_supplied_up_to_a_bound(judged, few, tmp_path, monkeypatch):
    monkeypatch.setattr(process.mending, "MOST", 1)
    few("embedding")
    (tmp_path / "port.py").write_text("from dsv4_mlx import Model, ModelArgs\nx = Any\ny = Optional[int]\n")
    report = judged(str(tmp_path / "port.py"), "--mend-imports")
    assert (report["verdict"], len(report["notes"])) == ("crashed", 1)
    assert "name 'Optional' is not defined" in report["sentence"]


def test_a_folder_of_temporary_files_that_cannot_be_emptied_is_no_verdict(judged, few, monkeypatch):
    """A process that the candidate left behind may write while the folder is being removed."""
    few("embedding")
    rmdir = os.rmdir

    def busy(path, **options):
        if "parity-" in str(path):
            raise OSError(39, "Directory not empty")
        return rmdir(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", busy)
        assert judged("dsv4_mlx")["verdict"] == "parity"


@pytest.mark.skipif(shutil.which("g++") is None, reason="MLX compiles with g++, which is not here")
def test_what_is_wrong_only_when_compiled_is_no_parity(judged, few, monkeypatch):
    few("model.flash", **LIGHT)
    lived = [Cell(row, LIVES, Verdict.PARITY) for row in (CACHES, *SERVED)]
    monkeypatch.setattr(gate, "judge_lives", lambda *_: (lived, []))  # for the time: they are never compiled
    report = judged(path_of("compiles_a_number"))
    assert report["verdict"] == "diverges"
    red = {cell["schedule"] for cell in report["cells"] if cell["verdict"] == "diverges"}
    assert red == {"decode", "chunks", "batch"}  # with calls of one shape at several positions
    assert "with mx.compile at work, and only then," in report["sentence"]
    assert report["diagnosis"] == []


# --- hostile ports -------------------------------------------------------------------------------------------

SHORT = ("--timeout", "4")  # importing MLX takes a second of processor time
# name -> (verdict, exit code, what the sentence says, options)
HOSTILE = {
    "calls_sys_exit": ("crashed", 4, "The candidate called sys.exit(0)", ()),
    "calls_os_exit": ("crashed", 4, "ended its process with os._exit(3) or the like in the schedule 'oneshot'.", ()),
    "exits_on_import": ("crashed", 4, "ended its process with os._exit(0) or the like while it was imported.", ()),
    "no_model": ("crashed", 4, "has no Model with a ModelArgs", ()),
    "loops": ("crashed", 4, "computed for longer than the limit of 4 s in the schedule 'oneshot'.", SHORT),
    "sleeps": ("crashed", 4, "gave no answer for 16 s in the schedule 'oneshot'.", SHORT),
    "allocates": ("crashed", 4, "took more than the limit of 1 GiB of memory", ("--memory", "1")),
    "allocates_at_once": ("crashed", 4, "took more than the limit of 8 GiB of memory", ()),
    "segfaults": ("crashed", 4, "The candidate segfaulted (signal SIGSEGV) in the schedule 'oneshot'.", ()),
    "writes_outside": ("crashed", 4, f"tried to write to {CANDIDATES / 'written.txt'}", ()),
    "uses_network": ("crashed", 4, "tried to use the network", ()),
    "starts_program": ("crashed", 4, "tried to start another program (sh)", ()),
    "kills_parent": ("crashed", 4, "tried to signal another process", ()),
    "raises": ("crashed", 4, "raised ValueError in the schedule 'oneshot' (raises.py:9)", ()),
    "answers_garbage": ("crashed", 4, "answered nothing that can be read in the schedule 'oneshot'.", ()),
    "returns_nothing": ("crashed", 4, "the model returned NoneType instead of logits.", ()),
    "returns_too_much": ("crashed", 4, "answered nothing that can be read", ()),
    "returns_nan": ("diverges", 1, "gave logits that are not finite, from token 0 on.", ()),
    "returns_wrong_shape": ("diverges", 1, "gave logits of shape (1, 12) where (1, 12, 64) was asked for.", ()),
    "returns_last_only": ("parity", 0, "computes what the reference computes: 1 mechanisms, 5 cells", ()),
    "returns_integers": ("diverges", 1, "gave logits of type int32, where floating-point ones were asked for.", ()),
    "returns_random": ("diverges", 1, "logits differ from token 0 on", ()),
    "prints": ("parity", 0, "computes what the reference computes: 1 mechanisms, 5 cells", ()),
    "returns_output_object": ("parity", 0, "computes what the reference computes: 1 mechanisms, 5 cells", ()),
    "returns_tuple": ("parity", 0, "computes what the reference computes: 1 mechanisms, 5 cells", ()),
}
NEVER_RUN = {"exits_on_import", "no_model"}
# Each differs from one above in what its sentence says, which tests/test_process.py holds too.
SLOW = {
    "sleeps",
    "no_model",
    "allocates_at_once",
    "uses_network",
    "starts_program",
    "returns_nothing",
    "returns_too_much",
}
SLOW |= {"returns_output_object", "returns_tuple"}
SLOW |= {"sleeps", "segfaults", "calls_sys_exit", "raises", "kills_parent", "answers_garbage", "returns_wrong_shape"}
SLOW |= {"calls_os_exit", "prints"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in HOSTILE]
)
def test_whatever_a_candidate_does_is_a_verdict(judged, few, name):
    few("embedding")
    verdict, code, words, options = HOSTILE[name]
    report = judged(path_of(name), *options)
    assert (report["verdict"], report["exit_code"]) == (verdict, code)
    assert words in report["sentence"]
    assert "\n" not in report["sentence"]
    assert report["sentence"].endswith(".")
    assert not (CANDIDATES / "written.txt").exists()
    if name in NEVER_RUN:
        assert (report["cells"], report["first_deviation"]) == ([], None)
        return
    assert [cell["schedule"] for cell in report["cells"]] == list(SCHEDULES)
    if verdict == "parity":
        assert report["first_deviation"] is None
    else:
        assert report["first_deviation"]["mechanism"] == "embedding"
        assert report["first_deviation"]["schedule"] == "oneshot"
        assert "parity" not in verdicts(report, "embedding")
    if verdict == "diverges":
        assert [entry["defects"] for entry in report["diagnosis"]] == [[]]
        assert "gives what this port gives for" in report["diagnosis"][0]["sentence"]
    asked_again = "The same tokens gave other logits when asked again (embedding)."
    assert (asked_again in report["notes"]) == (name == "returns_random")


@pytest.mark.skipif(landlock_version() < 1, reason="the kernel has no Landlock")
def test_native_code_that_writes_outside_is_refused(judged, few):
    few("embedding")
    assert judged(path_of("writes_outside_in_c"))["verdict"] == "parity"
    assert not (CANDIDATES / "written.npy").exists()


def test_one_that_ends_its_process_every_time_is_soon_left_alone(judged, few):
    few("embedding", "attention.window")
    report = judged(path_of("segfaults"))
    assert verdicts(report, "embedding") == ["crashed"] * 2 + ["coverage gap"] * 3
    assert verdicts(report, "attention.window") == ["crashed"] * 2 + ["coverage gap"] * 3
    assert report["verdict"] == "crashed"
    names = ("embedding", "attention.window")
    assert [gap["sentence"] for gap in report["gaps"]] == [f"{name} {NOT_ASKED}" for name in names]


def test_hangs_end_a_probe_and_soon_the_run():
    matrix_ = matrix.Matrix()
    matrix_.note("embedding", Hung("hung"))
    assert matrix_.out_of_patience("embedding")
    assert not matrix_.out_of_patience("experts.shared")
    for name in ("experts.shared", "attention.window"):
        matrix_.note(name, Hung("hung"))
    assert matrix_.out_of_patience("hc.post")


# --- gaps ----------------------------------------------------------------------------------------------------


def test_a_missing_mtp_block_is_a_gap_and_required_a_failure(judged, few):
    few("embedding", "mtp")
    without = judged(path_of("unchanged"))
    assert (without["exit_code"], without["verdict"]) == (0, "parity")
    sentence = "mtp was not judged: The candidate offers no logits of its MTP block."
    assert without["gaps"] == [{"what": "mtp", "sentence": sentence, "required": False}]
    report = judged(path_of("unchanged"), "--require", "mtp", "--require", "batch")
    assert (report["exit_code"], report["verdict"]) == (5, "coverage gap")
    assert report["gaps"] == [{"what": "mtp", "sentence": sentence, "required": True}]
    assert report["sentence"].endswith(f"agrees wherever it was judged, but mtp was required: {sentence}")
    assert judged("dsv4_mlx", "--require", "mtp")["verdict"] == "parity"


def test_a_required_mechanism_that_is_red_diverges(judged, few, unnamed):
    few("hc.comb", "mtp")
    unnamed()
    report = judged(path_of("mixes_untransposed"), "--require", "mtp")
    assert (report["exit_code"], report["verdict"]) == (1, "diverges")
    assert [gap["required"] for gap in report["gaps"]] == [True]


def test_a_schedule_that_is_not_offered_is_one_gap_and_required_a_failure(judged, few):
    few("embedding", "experts.shared")
    report = judged(path_of("needs_cache"))
    assert report["verdict"] == "parity"
    assert verdicts(report, "embedding") == ["coverage gap"] + ["parity"] * 4
    assert [gap["what"] for gap in report["gaps"]] == ["oneshot"]
    assert "does not run without a cache" in report["gaps"][0]["sentence"]
    report = judged(path_of("needs_cache"), "--require", "oneshot")
    assert (report["exit_code"], report["verdict"]) == (5, "coverage gap")
    assert "oneshot was required" in report["sentence"]


@pytest.mark.parametrize(
    ("name", "lacking"),
    [("takes_no_cache", ["cached", "decode", "chunks", "batch"]), ("refuses_batches", ["batch"])],
)
def test_what_a_port_says_that_it_does_not_offer_is_a_gap(judged, few, name, lacking):
    few("embedding", "experts.shared")
    report = judged(path_of(name))
    assert report["verdict"] == "parity"
    assert [gap["what"] for gap in report["gaps"]] == lacking
    assert f"Not judged: {', '.join(lacking)}." in report["sentence"]


@pytest.mark.parametrize(("name", "column"), [("raises_with_cache", "cached"), ("raises_without_cache", "oneshot")])
def test_what_raises_is_crashed_in_a_whole_column_too(judged, few, name, column):
    """To raise is no way to say that something is not offered: it once made ports green that nobody could use."""
    few("embedding", "experts.shared")
    report = judged(path_of(name))
    assert (report["verdict"], report["exit_code"]) == ("crashed", 4)
    assert report["first_deviation"]["schedule"] == column
    assert {cell["verdict"] for cell in report["cells"] if cell["schedule"] == column} == {"crashed"}
    assert report["gaps"] == []


# Rows of one length, as in the schedule `batch`, do not show it; the lives of the caches must, at every seed.
@pytest.mark.parametrize("seed", ["0", pytest.param("5", marks=pytest.mark.slow)])
def test_one_offset_for_all_rows_of_a_batch_is_no_parity(judged, few, monkeypatch, tmp_path, seed):
    few("model.flash", **LIGHT)  # the lives draw tokens of their own
    monkeypatch.setattr(confirm, "can_compile", lambda *_: False)  # for the time: it takes no part in the lives
    report = judged(path_of("one_offset"), "--seed", seed, "--bundle", str(tmp_path / "case"))
    assert report["verdict"] == "diverges"
    red = {(cell["mechanism"], cell["schedule"]) for cell in report["cells"] if cell["verdict"] == "diverges"}
    assert red == {(CACHES, LIVES), ("serving.batches", LIVES)}
    assert all(cell["life"] for cell in report["cells"] if (cell["mechanism"], cell["schedule"]) in red)
    said = said_by(tmp_path / "case" / "life.py", path_of("one_offset"), tmp_path)
    assert float(said.rpartition("is off by")[2]) > 0.01
    assert "merging" in report["first_deviation"]["sentence"] or "padded" in report["first_deviation"]["sentence"]


# hf under PYTHONWARNINGS=error once was judged on 37 cells of 185, and green.
def test_a_verdict_on_fewer_cells_than_its_kind_offers_is_no_parity(judged, few, monkeypatch):
    few("embedding", "experts.shared")
    ask = gate.ask

    def refusing(engine, family, schedule):
        if schedule in ("decode", "batch"):
            raise process.NotOffered("The candidate does not decode.")
        return ask(engine, family, schedule)

    monkeypatch.setattr(matrix, "ask", refusing)
    report = judged("dsv4_mlx")
    assert (report["verdict"], report["exit_code"]) == ("coverage gap", 5)
    assert report["sentence"].startswith("Only 6 of 10 cells that dsv4_mlx is known to offer were judged (")
    assert judged(path_of("unchanged"))["verdict"] == "parity"  # of whom nothing is known


# `quick` does not run this probe: a requirement that nobody looks at must not look fulfilled.
def test_what_the_profile_does_not_run_cannot_be_required_in_vain(capsys, few):
    few("embedding", "indexer.large")
    code, out, err = run(capsys, "dsv4_mlx", "--require", "indexer.large")
    assert code in (2, 5), out
    assert "indexer.large" in out + err


# --- documents -----------------------------------------------------------------------------------------------


def test_json_on_standard_output_is_all_that_is_there(capsys, few):
    few("embedding")
    code, out, _ = run(capsys, path_of("prints"), "--json", "-")
    report = json.loads(out)
    jsonschema.validate(report, document.schema(SCHEMA))
    assert (code, report["verdict"]) == (0, "parity")


def test_two_documents_do_not_share_standard_output(capsys, idle):
    code, out, err = run(capsys, "dsv4_mlx", "--json", "-", "--sarif", "-")
    assert (code, json.loads(out)["verdict"]) == (2, "bad input")
    assert one_sentence(err)


def test_a_baseline_adds_drift(judged, few, tmp_path):
    few("embedding", "experts.shared")
    old = judged("dsv4_mlx")
    assert all(cell["drift"] is None for cell in old["cells"])
    old["cells"][0]["ratio"] /= 2
    old["cells"][1] |= {"verdict": "crashed", "ratio": 0.0}
    del old["cells"][2]
    (tmp_path / "old.json").write_text(json.dumps(old))
    report = judged("dsv4_mlx", "--baseline", str(tmp_path / "old.json"))
    assert [cell["drift"] for cell in report["cells"]] == [pytest.approx(2, rel=1e-4), None, None] + [1.0] * 7
    assert report["notes"] == ["crashed in the baseline, parity now: embedding (cached)"]
    assert report["exit_code"] == 0  # drift alone is no deviation


def test_one_run_writes_every_document(judged, few, tmp_path, capsys):
    few("embedding", "hc.comb", "mtp")
    names = ("html", "markdown", "junit", "sarif")
    report = judged(
        path_of("mixes_untransposed"), *(word for name in names for word in (f"--{name}", str(tmp_path / name)))
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "report.json"])
    suites = ElementTree.parse(tmp_path / "junit").getroot()
    assert (suites.get("tests"), suites.get("failures"), suites.get("skipped")) == ("15", "5", "5")
    red = [case.get("classname") for case in suites.iter("testcase") if case.find("failure") is not None]
    assert red == ["parity.hc.comb"] * 5
    assert (tmp_path / "markdown").read_text().startswith("## ")
    for name in ("html", "markdown"):
        text = (tmp_path / name).read_text()
        assert all(word in text for word in ("D016", "hc", "diverges", "oneshot"))
    page = (tmp_path / "html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    rules = [result["ruleId"] for result in json.loads((tmp_path / "sarif").read_text())["runs"][0]["results"]]
    assert rules == ["D016", "gap.mtp"]
    assert [gap["what"] for gap in report["gaps"]] == ["mtp"]


# --json /dev/stderr or /dev/null names no file to be replaced.
def test_a_pipe_is_written_to_and_not_replaced(capsys, few, tmp_path):
    few("embedding")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(
        [sys.executable, "-c", "import sys; print(open(sys.argv[1]).read())", str(pipe)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        code, _, _ = run(capsys, "dsv4_mlx", "--json", str(pipe))
        assert code == 0
        assert pipe.is_fifo()
        assert json.loads(reader.communicate(timeout=10)[0])["verdict"] == "parity"
    finally:
        reader.kill()
        reader.communicate()


def test_a_port_that_wants_more_experts_than_it_takes_has_them(few, capsys):
    few("router.scores", "router.overflow", "router.choice", "router.hash", "weights.fp4")
    code, out, _ = run(capsys, path_of("partitions_at_k"))
    assert (code, "every one agrees" in " ".join(out.split())) == (0, True)


# --- in which names a port takes its checkpoints --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "family"), [("only_short_prefix", "F3"), ("only_mlx_community", "F2"), ("only_huggingface", "F8")]
)
def test_a_port_of_other_names_is_judged_on_them(few, capsys, tmp_path, name, family):
    few("embedding", "attention.output", "experts.shared", "weights.fp8")
    code, out, _ = run(capsys, path_of(name), "--json", str(tmp_path / "report.json"))
    report = json.loads((tmp_path / "report.json").read_text())
    jsonschema.validate(report, document.schema(SCHEMA))
    assert (code, report["verdict"]) == (0, "parity")
    states = {one["family"]: one["state"] for one in report["loading"]}
    assert states[family] == "loads"
    assert states["F1"] == "does not load"
    assert f"Judged on family {family}, " in " ".join(out.split())
    packed = {cell["verdict"] for cell in report["cells"] if cell["mechanism"] == "weights.fp8"}
    # Hugging Face's names have no packed weights: to read plain numbers shows nothing about them.
    assert packed == ({"coverage gap"} if family == "F8" else {"parity"})


def test_a_wrong_port_of_other_names_is_named(few, capsys, tmp_path):
    few("embedding", "hc.post", "hc.comb")
    code, _, _ = run(capsys, path_of("short_prefix_untransposed"), "--json", str(tmp_path / "report.json"))
    report = json.loads((tmp_path / "report.json").read_text())
    assert (code, report["first_deviation"]["mechanism"]) == (1, "hc.comb")
    assert [entry["defects"] for entry in report["diagnosis"]] == [["D016"]]


def test_published_names_may_be_asked_for(few, capsys, tmp_path):
    few("embedding")
    code, _, _ = run(capsys, path_of("only_short_prefix"), "--family", "raw", "--json", str(tmp_path / "report.json"))
    report = json.loads((tmp_path / "report.json").read_text())
    jsonschema.validate(report, document.schema(SCHEMA))
    assert (code, report["verdict"], report["cells"]) == (1, "diverges", [])
    assert "does not load published names: The candidate raised ValueError" in report["sentence"]
    assert "--family raw" in report["reproduce"]
    assert run(capsys, path_of("unchanged"), "--family", "raw")[0] == 0


def test_a_port_that_takes_packed_experts_only_has_them_in_every_probe(few, capsys, tmp_path):
    few("embedding", "experts.shared", "router.choice", "attention.output", "compressor.plain", "weights.fp4")
    code, out, _ = run(capsys, path_of("quantises_experts"), "--json", str(tmp_path / "report.json"))
    report = json.loads((tmp_path / "report.json").read_text())
    jsonschema.validate(report, document.schema(SCHEMA))
    assert (code, report["verdict"]) == (0, "parity")
    assert {cell["verdict"] for cell in report["cells"]} == {"parity"}
    assert "Judged with the experts in fp4" in " ".join(out.split())


# --- what no published checkpoint needs ------------------------------------------------------------------------------


def test_a_port_that_is_right_for_every_published_config_is_right(few, capsys, tmp_path):
    few("embedding", "experts.shared", "router.scores", "router.choice", "router.sigmoid")
    code, out, _ = run(capsys, path_of("ignores_scoring_func"), "--json", str(tmp_path / "report.json"))
    report = json.loads((tmp_path / "report.json").read_text())
    jsonschema.validate(report, document.schema(SCHEMA))
    assert (code, report["verdict"], report["first_deviation"], report["diagnosis"]) == (0, "parity", None, [])
    assert [(one["mechanism"], one["defects"]) for one in report["beyond"]] == [("router.sigmoid", ["D106"])]
    assert "Beyond published configs it deviates in router.sigmoid (D106)." in report["sentence"]
    assert "beyond published configs: router.sigmoid" in " ".join(out.split())


@pytest.mark.parametrize("option", [("--strict",), ("--require", "router.sigmoid")])
def test_what_no_published_checkpoint_needs_counts_where_it_is_asked_for(few, capsys, tmp_path, option):
    few("embedding", "experts.shared", "router.scores", "router.choice", "router.sigmoid")
    code, _, _ = run(capsys, path_of("ignores_scoring_func"), *option, "--json", str(tmp_path / "report.json"))
    report = json.loads((tmp_path / "report.json").read_text())
    assert (code, report["verdict"], report["beyond"]) == (1, "diverges", [])
    assert [entry["defects"] for entry in report["diagnosis"]] == [["D106"]]
    assert option[0] in report["reproduce"]


# --- the last position's logits only ---------------------------------------------------------------------------------


def test_logits_of_each_calls_last_token_are_judged_and_diagnosed(few, capsys, tmp_path):
    few("embedding", "experts.shared", "hc.post", "hc.pre", "hc.comb", "attention.window")
    code, out, _ = run(capsys, path_of("last_only_untransposed"), "--json", str(tmp_path / "report.json"))
    report = json.loads((tmp_path / "report.json").read_text())
    assert (code, report["first_deviation"]["mechanism"]) == (1, "hc.comb")
    assert [entry["defects"] for entry in report["diagnosis"]] == [["D016"]]
    assert "each call's last token alone" in " ".join(out.split())
    tokens = {cell["schedule"]: cell["tokens"] for cell in report["cells"] if cell["mechanism"] == "hc.comb"}
    assert (tokens["oneshot"], tokens["chunks"]) == (1, 4)


# --- what a port needs, what it says, what is looked for --------------------------------------------------------------


@pytest.mark.skipif(mx.metal.is_available(), reason="this machine has Metal")
def test_a_port_that_needs_metal_is_a_matter_of_the_machine(few, capsys):
    few("embedding", "experts.shared")
    code, out, _ = run(capsys, path_of("needs_metal"))
    assert code == Verdict.ENVIRONMENT.exit_code
    assert "needs Metal, which this machine does not have" in " ".join(out.split())


def test_a_port_may_say_how_its_mtp_block_is_called(few, capsys, tmp_path):
    few("embedding", "mtp")
    code, _, _ = run(capsys, path_of("says_how_its_mtp_is_called"), "--json", str(tmp_path / "report.json"))
    report = json.loads((tmp_path / "report.json").read_text())
    assert (code, report["gaps"]) == (0, [])
    assert verdicts(report, "mtp") == ["parity"] * 5


def test_only_may_ask_for_a_row_of_lives_with_the_whole_model_alone(judged):
    """Also of a port that gives a call's last logits alone, which each beginning of a request is held to."""
    report = judged(path_of("returns_last_only"), "--only", "serving.steps")
    assert report["verdict"] == "parity"
    assert [one["name"] for one in report["mechanisms"]] == ["model.flash", "serving.steps"]
    (row,) = (one for one in report["cells"] if one["schedule"] == LIVES)
    assert (row["mechanism"], row["verdict"]) == ("serving.steps", "parity")
    assert row["tokens"] > 30
    assert report["reproduce"].endswith("--only serving.steps")


def test_one_mechanism_alone_is_judged_with_what_it_needs(capsys, tmp_path):
    code, _, _ = run(
        capsys, path_of("mixes_untransposed"), "--only", "hc.comb", "--json", str(tmp_path / "report.json")
    )
    report = json.loads((tmp_path / "report.json").read_text())
    names = ["embedding", "experts.shared", "hc.post", "hc.pre", "hc.comb"]
    assert (code, [row["name"] for row in report["mechanisms"]]) == (1, names)
    assert [entry["defects"] for entry in report["diagnosis"]] == [["D016"]]
    assert "--only hc.comb" in report["reproduce"]
    code, _, error = run(capsys, path_of("unchanged"), "--only", "hc.com")
    assert (code, one_sentence(error), "hc.comb" in error) == (2, True, True)


DRAFT = """
id = "X900-draft"
title = "the streams mixed by comb plus one"
mechanism = "hc.comb"
symptom = "none"
visible = "always"
seen = "plausible; not seen in a public port"
formula = "y = post v + comb^T streams"
mlx_reason = "a draft"

[[reference]]
file = "hyper_connection"
old = '''OLD'''
new = '''NEW'''
"""


def test_a_draft_of_a_defect_is_looked_for(capsys, unnamed, tmp_path):
    """The port that mixes by comb, with the catalogue's own entry hidden: only the draft names it."""
    edit = next(edit for edit in catalogue()["D016"].reference)
    drafts = tmp_path / "drafts"
    drafts.mkdir()
    text = DRAFT.replace("OLD", edit.old).replace("NEW", edit.new)
    (drafts / "x900_draft.toml").write_text(text)
    asked = (path_of("mixes_untransposed"), "--only", "hc.comb", "--defects", str(drafts))
    unnamed()
    run(capsys, *asked, "--json", str(tmp_path / "report.json"))
    report = json.loads((tmp_path / "report.json").read_text())
    assert [entry["defects"] for entry in report["diagnosis"]] == [["X900-draft"]]
    (drafts / "x900_draft.toml").write_text(DRAFT.replace("OLD", "nowhere").replace("NEW", ""))
    code, _, error = run(capsys, *asked)
    assert (code, one_sentence(error), "which is not at one place" in error) == (2, True, True)
    code, _, error = run(capsys, path_of("unchanged"), "--defects", str(tmp_path / "none"))
    assert (code, one_sentence(error), "there is no such folder" in error) == (2, True, True)
