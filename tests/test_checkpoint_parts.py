"""A run's limits: `--layers` and `parity merge`, whose parts join into the report of the whole, but for its clock; and
`--memory`, which is kept.

Run: pytest tests/test_checkpoint_parts.py, and with -m slow for more cuts
"""

import json
import re
import shutil
from itertools import pairwise

import pytest

from dsv4_mlx.conversion import convert, recipe_of
from parity import cli
from parity.cases.resources import fixtures_path
from parity.errors import BadInput
from parity.gate.defects import catalogue
from parity.gate.defects.patching import applied
from parity.jobs.fixture import write_fixture
from parity.streamed import memory
from parity.streamed.ranges import Range, merged
from parity.streamed.source import Source

FLASH = json.loads((fixtures_path() / "configs" / "flash.json").read_text())
pytest_plugins = ["pytester"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny checkpoint, and a conversion of it to 4 bits."""
    root = tmp_path_factory.mktemp("parts")
    original = write_fixture(root / "original", FLASH, "F1-bfloat16")
    rules = recipe_of({"*.ffn.gate": False, "*": {"bits": 4, "group_size": 64}})
    return original, convert(original, root / "conversion", "F2", rules, progress=lambda text: None)


def run(folder, to, *options, count=24):
    code = cli.main(["checkpoint", str(folder), "--count", str(count), "--json", str(to), *map(str, options)])
    return code, json.loads(to.read_text())


def without_clock(document):
    return document | {"clock": {}}


@pytest.mark.parametrize(
    ("against", "cuts"),
    [
        pytest.param("itself", (0, 1, 4), marks=pytest.mark.slow),
        ("its original", (0, 1, 4)),
        pytest.param("itself", (0, 2, 3, 4), marks=pytest.mark.slow),
        pytest.param("its original", (0, 2, 3, 4), marks=pytest.mark.slow),
    ],
)
def test_parts_are_the_whole(folders, tmp_path, capsys, against, cuts):
    original, conversion = folders
    options = ["--original", original] if against == "its original" else []
    parts = []
    for first, after in pairwise(cuts):
        parts.append(tmp_path / f"{first}.json")
        code, part = run(conversion, parts[-1], *options, "--layers", f"{first}-{after - 1}")
        assert code == 0
        assert part["facts"]["part"] == f"{first}-{after - 1}"
        assert f"stages of layers {first}-{after - 1}" in part["sentence"]
    code, whole = run(conversion, tmp_path / "whole.json", *options)
    made = tmp_path / "merged.json"
    assert cli.main(["merge", *map(str, reversed(parts)), "--json", str(made)]) == code == 0
    assert without_clock(json.loads(made.read_text())) == without_clock(whole)
    capsys.readouterr()


@pytest.mark.slow
def test_a_part_judges_no_layer_but_its_own(folders, tmp_path, capsys):
    with applied([catalogue()["X002"]], "dsv4_mlx"):  # rows of ratio 4: layer 2 alone
        early, _ = run(folders[0], tmp_path / "early.json", "--layers", "0-1", count=48)
        late, found = run(folders[0], tmp_path / "late.json", "--layers", "2-3", count=48)
    assert (early, late) == (0, 1)
    assert found["sentence"].startswith(
        "layer 2 (ratio 4, hash-routed) is where dsv4_mlx deviates first of layers 2-3: "
    )
    assert cli.main(["merge", str(tmp_path / "early.json"), str(tmp_path / "late.json")]) == 1
    assert "layer 2 (ratio 4, hash-routed) is where dsv4_mlx deviates first: " in " ".join(
        capsys.readouterr().out.split()
    )


def test_what_no_program_can_load_is_told_by_every_part(folders, tmp_path, capsys):
    original, conversion = folders
    other = tmp_path / "other"
    shutil.copytree(conversion, other)
    told = json.loads((other / "config.json").read_text())
    told["quantization"]["layers.1.attn.wq_b"] = {"group_size": 64, "bits": 8}
    (other / "config.json").write_text(json.dumps(told))
    code, found = run(other, tmp_path / "late.json", "--original", original, "--layers", "2-3")
    assert (code, [stage["name"] for stage in found["stages"]]) == (1, ["files"])
    assert "layers.1.attn.wq_b" in found["sentence"]
    assert cli.main(["merge", str(tmp_path / "late.json")]) == 1
    capsys.readouterr()


def test_a_range_is_read_or_refused():
    assert Range.read(None, 43).whole
    assert (Range.read("22-42", 43).first, Range.read("7", 43).last) == (22, 7)
    assert [Range.read("42", 43).judges(name) for name in ("layer 42", "head", "MTP block 0", "layer 4")] == [
        1,
        1,
        1,
        0,
    ]
    assert [Range.read("0", 43).judges(name) for name in ("files", "embedding", "layer 0", "head")] == [1, 1, 1, 0]
    for wrong in ("3-1", "0-43", "-1", "a", "1-", ""):
        with pytest.raises(BadInput, match="write 0-42, or one number"):
            Range.read(wrong, 43)


def test_what_is_no_part_of_one_run_is_refused(folders, tmp_path, capsys):
    _, first = run(folders[0], tmp_path / "first.json", "--layers", "0-1")
    _, last = run(folders[0], tmp_path / "last.json", "--layers", "2-3")
    other = json.loads(json.dumps(last))
    other["facts"] |= {"tokens": 20, "ids": "0" * 16}  # as those of another text are
    wrong = json.loads(json.dumps(last))
    wrong["stages"][0]["ratio"] = 0.123
    for documents, said in (
        ([first], "No report has layer 2 and 3 more"),
        ([first, other], "are parts of different runs \\(tokens, ids differ\\)"),
        ([first, last, wrong], "has other figures of layer 2"),
        ([first, {"schema": "dsv4-parity/gate/1"}], "is no report of `parity checkpoint --json`"),
        ([first, last | {"verdict": "interrupted", "sentence": "Interrupted."}], "did not end \\(Interrupted\\)"),
    ):
        with pytest.raises(BadInput, match=said):
            merged({f"{place}.json": one for place, one in enumerate(documents)})
    (tmp_path / "hollow.json").write_text('{"schema": "dsv4-parity/checkpoint/1"}')
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "broken.json").write_text("{")
    for name in ("list.json", "broken.json", "nowhere.json"):
        capsys.readouterr()
        assert cli.main(["merge", str(tmp_path / name)]) == 2
        said = capsys.readouterr().err
        assert name in said
        assert "Traceback" not in said
    assert cli.main(["merge", str(tmp_path / "hollow.json")]) == 2
    assert "One of the reports is damaged" in capsys.readouterr().err


def test_pytest_has_the_tests_of_the_range(folders, pytester):
    options = [f"--checkpoint={folders[0]}", "--layers=2-3", "--tokens=a few words"]
    result = pytester.runpytest_inprocess(
        "-p", "parity.pytest_full_model", "-p", "no:cacheprovider", "-m", "full_model", *options, "-v"
    )
    result.assert_outcomes(passed=5)  # layers 2 and 3, head, MTP block 0, text


# --- memory ----------------------------------------------------------------------------------------------------


def test_a_run_that_needs_more_memory_than_it_may_have_does_not_start(folders, tmp_path, capsys):
    code, found = run(folders[0], tmp_path / "report.json", "--memory", 0.1)
    assert (code, found["verdict"], found["stages"]) == (2, "bad input", [])
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(
        r"This run needs about 0\.5 GiB, most of it for (layer|MTP block) \d, which is above --memory 0\.1", said
    )


def test_what_a_run_needs_grows_with_tokens_and_weights(folders, tmp_path):
    source = Source(folders[0])
    few, many = (memory.needed(source, tokens)[0] for tokens in (64, 65536))
    assert few < many
    assert memory.needed(source, 65536)[1] == "head"
    assert memory.needed(source, 64, source)[0] > few
    mid = Source(write_fixture(tmp_path / "mid", FLASH, "F1-bfloat16", size="mid"))
    assert memory.needed(mid, 64)[0] > few


def test_a_run_that_comes_to_more_is_ended_and_goes_on(folders, tmp_path, monkeypatch, capsys):
    _, whole = run(folders[0], tmp_path / "whole.json")
    state = tmp_path / "state"
    with monkeypatch.context() as patch:
        patch.setattr(memory, "needed", lambda *given: (0.0, ""))
        patch.setattr(memory, "peak", lambda: 9.0 if (state / "layer 1.json").exists() else 1.0)
        code = cli.main(["checkpoint", str(folders[0]), "--count", "24", "--memory", "8", "--resume", str(state)])
    said = " ".join(capsys.readouterr().err.split())
    assert code == 3
    assert re.search(r"The run came to 9\.0 GiB after \d of 7 stages, above --memory 8; it was ended", said)
    assert f"what is done is kept in {state}" in said
    assert not (state / "layer 3.json").exists()
    _, resumed = run(folders[0], tmp_path / "resumed.json", "--resume", state)
    assert without_clock(resumed) == without_clock(whole)
