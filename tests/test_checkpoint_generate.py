"""`parity checkpoint --generate`: right continuations are at parity, one other token is not, unless it is a tie.

Run: pytest tests/test_checkpoint_generate.py
"""

import json
from xml.etree import ElementTree

import jsonschema
import mlx.core as mx
import pytest

import dsv4_mlx
from parity import cli
from parity.cases.resources import fixtures_path
from parity.commands.progress import Progress
from parity.errors import BadInput
from parity.gate.defects import catalogue
from parity.gate.defects.patching import applied
from parity.jobs.fixture import write_fixture
from parity.report import document
from parity.streamed.ranges import merged
from parity.streamed.results import SCHEMA
from parity.streamed.source import Source
from parity.whole import sizes

FLASH = json.loads((fixtures_path() / "configs" / "flash.json").read_text())
PROMPT = [2, 3, 7, 12, 30, 4]
pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def silent(monkeypatch):
    """On a busy machine no line says what is being done."""
    monkeypatch.setattr(Progress, "EVERY", float("inf"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_fixture(tmp_path_factory.mktemp("generate") / "checkpoint", FLASH, "F1-bfloat16")


@pytest.fixture(scope="module")
def records(folder, tmp_path_factory):
    """What the right model gives to the package's prompts, 12 tokens each."""
    root = tmp_path_factory.mktemp("records") / "right"
    assert cli.main(["checkpoint", str(folder), "--generate", "--max-tokens", "12", "--record", str(root)]) == 0
    return root


def run(capsys, folder, *arguments):
    """(exit code, standard output, standard error) of parity checkpoint."""
    code = cli.main(["checkpoint", str(folder), *map(str, arguments)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    return code, " ".join(captured.out.split()), captured.err


def told(capsys, folder, to, *arguments):
    """(exit code, the JSON document)."""
    code, _, _ = run(capsys, folder, *arguments, "--json", to)
    found = json.loads(to.read_text())
    jsonschema.validate(found, document.schema(SCHEMA))
    assert code == found["exit_code"]
    return code, found


def record(root, ids, prompt=PROMPT, name="one", **others):
    """A folder with one record."""
    root.mkdir(exist_ok=True)
    content = {"schema": "dsv4-parity/continuation/1", "prompt_ids": prompt, "ids": ids} | others
    (root / f"{name}.json").write_text(json.dumps(content))
    return root


def greedy(folder, dtype, count):
    """By our own calls, without a cache."""
    model, ids = dsv4_mlx.load(folder, dtype), [*PROMPT]
    for _ in range(count):
        ids.append(model(mx.array([ids]))[0, -1].argmax().item())
    return ids[len(PROMPT) :]


# --- right and wrong ------------------------------------------------------------------------------------------


def test_what_is_recorded_is_what_the_model_says_and_is_found_again(capsys, folder, records, tmp_path):
    assert sorted(path.name for path in records.iterdir()) == [f"prompt-{n}.json" for n in (1, 2, 3)]
    one = json.loads((records / "prompt-1.json").read_text())
    assert (len(one["ids"]), len(one["margins"]), one["dtype"]) == (12, 12, "bfloat16")
    assert all(margin >= 0 for margin in one["margins"])
    code, found = told(capsys, folder, tmp_path / "report.json", "--generate", records)
    assert (code, [stage["name"] for stage in found["stages"]]) == (0, ["generate"])
    assert [len(one["ids"]) for one in found["continuations"]] == [12, 12, 12]
    assert found["continuations"][0]["ids"] == one["ids"]
    assert found["sentence"] == "dsv4_mlx continues 3 prompts by 36 tokens as recorded, in bfloat16, 0 of them ties."
    record(tmp_path / "ours", greedy(folder, mx.bfloat16, 8))
    assert run(capsys, folder, "--generate", tmp_path / "ours")[0] == 0


def test_one_other_token_diverges_and_is_named(capsys, folder, tmp_path):
    ids = greedy(folder, mx.bfloat16, 8)
    model = dsv4_mlx.load(folder)
    ids[5] = model(mx.array([PROMPT + ids[:5]]))[0, -1].argmin().item()
    record(tmp_path / "wrong", ids)
    paths = {name: tmp_path / name for name in ("junit", "markdown", "html")}
    files = [word for name, path in paths.items() for word in (f"--{name}", path)]
    code, found = told(capsys, folder, tmp_path / "report.json", "--generate", tmp_path / "wrong", *files)
    assert (code, found["verdict"]) == (1, "diverges")
    (one,) = found["continuations"]
    assert one["wrong"][0].startswith(f"token 5 is {one['ids'][5]} where {ids[5]} was recorded, with a margin of ")
    assert "beyond the" in one["wrong"][0]
    assert one["wrong"][0] in found["sentence"]
    assert one["ids"][:5] == ids[:5]
    (case,) = ElementTree.fromstring(paths["junit"].read_text()).iter("testcase")
    assert (case.get("name"), [child.tag for child in case]) == ("generate", ["failure"])
    assert "| one: 2 3 7 12 30 4 |" in paths["markdown"].read_text()
    assert "Greedy continuations" in paths["html"].read_text()


def test_a_difference_that_rounding_explains_is_a_tie_and_what_follows_is_held(capsys, folder, tmp_path):
    bfloat16, float32 = (greedy(folder, dtype, 16) for dtype in (mx.bfloat16, mx.float32))
    at = next(at for at, (a, b) in enumerate(zip(bfloat16, float32, strict=True)) if a != b)
    root = record(tmp_path / "records", bfloat16, dtype="bfloat16")
    code, found = told(capsys, folder, tmp_path / "report.json", "--generate", root, "--dtype", "float32")
    (one,) = found["continuations"]
    assert (code, one["wrong"], len(one["ids"])) == (0, [], 16)
    assert one["ties"][0].startswith(f"token {at} is {float32[at]} where {bfloat16[at]} was recorded")
    assert found["notes"] == [f"one: {said}, a tie." for said in one["ties"]]
    assert found["stages"][0]["choices"][0]["ties"] == len(one["ties"]) > 0
    # The same record, said to be of float32: its rounding does not explain it.
    record(root, bfloat16, dtype="float32")
    assert run(capsys, folder, "--generate", root, "--dtype", "float32")[0] == 1


def test_a_wrong_model_diverges_from_records(capsys, folder, records):
    with applied([catalogue()["D016"]], "dsv4_mlx"):
        code, out, _ = run(capsys, folder, "--generate", records)
    assert (code, "diverges (exit 1)" in out) == (1, True)


def test_a_wrong_cache_diverges_without_records(capsys, folder, monkeypatch):
    call = dsv4_mlx.Model.__call__
    wrong = lambda self, ids, cache=None, **o: call(self, ids, cache, **o) * (-1 if cache and ids.shape[1] == 1 else 1)  # noqa: E731
    monkeypatch.setattr(dsv4_mlx.Model, "__call__", wrong)
    code, out, _ = run(capsys, folder, "--generate", "--max-tokens", 4)
    assert (code, "is the best of one call" in out) == (1, True)


def test_a_model_that_raises_is_told_and_nothing_is_recorded(capsys, folder, monkeypatch, tmp_path):
    def breaks(self, *given, **options):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(dsv4_mlx.Model, "__call__", breaks)
    code, out, _ = run(capsys, folder, "--generate", "--record", tmp_path / "new")
    assert (code, "dsv4_mlx raises RuntimeError: no such kernel." in out) == (4, True)
    assert list(tmp_path.iterdir()) == []


# --- what is refused ------------------------------------------------------------------------------------------

BAD = {
    "nowhere": (lambda root: root / "none", "cannot be read (No such file or directory)"),
    "empty": (lambda root: root, "holds no recorded continuation"),
    "no JSON": (lambda root: record(root, [1]) and (root / "one.json").write_text("{") and root, "(it is no JSON)"),
    "another schema": (lambda root: record(root, [1], schema="x"), "is no recorded continuation"),
    "no ids": (lambda root: record(root, []), "ids is not a list of 1 to 1048576 token ids"),
    "words": (lambda root: record(root, ["w1"]), "ids is not a list of"),
    "no prompt": (lambda root: record(root, [1], prompt=None), "prompt_ids is not a list of"),
    "outside": (lambda root: record(root, [1, 4000]), "ids holds id 4000, outside the checkpoint's vocabulary of 128"),
    "below": (lambda root: record(root, [1], prompt=[-1]), "prompt_ids holds id -1, outside"),
    "margins": (lambda root: record(root, [1, 2], margins=[0.5]), "margins are not 2 numbers"),
    "a type": (lambda root: record(root, [1], dtype="float8"), "dtype none of float32, bfloat16"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_records_are_one_sentence(capsys, folder, tmp_path, what):
    make, words = BAD[what]
    code, out, said = run(capsys, folder, "--generate", make(tmp_path))
    assert (code, said.count("\n"), out) == (2, 1, "")
    assert words in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--generate", "--layers", "0-1"], "--layers is of a run block by block"),
        (["--generate", "--original", "x"], "--original is of a run block by block"),
        (["--generate", "--resume", "x"], "--resume is of a run block by block"),
        (["--record", "x"], "--record goes with --generate"),
        (["--max-tokens", "3"], "--max-tokens goes with --generate"),
        (["--generate", "x", "--record", "y"], "give --generate without a folder"),
        (["--generate", "x", "--tokens", "y"], "leave --tokens out"),
        (["--generate", "--record", "/"], "exists already"),
        (["--generate", "--record", "/no/where"], "there is no folder /no"),
        (["--generate", "--memory", "0.1"], "needs the whole model of"),
    ],
)
def test_options_that_cannot_be(capsys, folder, options, words):
    code, _, said = run(capsys, folder, *options)
    assert (code, said.count("\n")) == (2, 1)
    assert words in said


def test_a_model_larger_than_the_machine_is_refused(capsys, folder, monkeypatch):
    monkeypatch.setattr(sizes, "machine", lambda: 0.3)
    code, _, said = run(capsys, folder, "--generate")
    assert (code, "more than this machine's 0.3 GiB; without --generate it is judged block by block" in said) == (
        2,
        True,
    )
    source = Source(folder)
    assert sizes.needed(source, "float32") > sizes.needed(source, "bfloat16") > 0.5


def test_a_report_of_the_whole_has_no_parts(capsys, folder, records, tmp_path):
    _, found = told(capsys, folder, tmp_path / "report.json", "--generate", records, "--max-tokens", 2)
    with pytest.raises(BadInput, match="has no parts to merge"):
        merged({"report.json": found})


def test_a_test_in_pytest(pytester, folder, records, tmp_path):
    given = ("-p", "parity.pytest_full_model", "-p", "no:cacheprovider", "-m", "full_model", f"--checkpoint={folder}")
    pytester.runpytest_inprocess(*given, f"--generate={records}").assert_outcomes(passed=1)
    wrong = record(tmp_path / "wrong", [1, 1, 1])
    result = pytester.runpytest_inprocess(*given, f"--generate={wrong}")
    result.assert_outcomes(failed=1)
    assert "was recorded, with a margin of" in result.stdout.str()
