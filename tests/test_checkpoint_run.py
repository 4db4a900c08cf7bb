"""`parity checkpoint`: right models are at parity, wrong ones diverge at their stage, a run that was ended goes on.

Run: pytest tests/test_checkpoint_run.py, and with -m slow for every family and for twenty kills
"""

import json
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import mlx.core as mx
import pytest
import torch

import dsv4_mlx
import reference_torch
from dsv4_mlx.cache import LayerCache
from dsv4_mlx.parts import Parts
from parity import cli
from parity.cases.resources import fixtures_path
from parity.commands.progress import Progress
from parity.gate.defects import catalogue
from parity.gate.defects.patching import applied
from parity.jobs.checkpoint import judge_checkpoint
from parity.jobs.fixture import VARIANTS
from parity.judging.sides import from_mlx
from parity.report import document, markdown
from parity.streamed import reference
from parity.streamed.results import SCHEMA
from parity.streamed.source import Source
from parity.streamed.stages import names_of
from parity.streamed.state import State

KNOWN = catalogue()
FLASH = json.loads((fixtures_path() / "configs" / "flash.json").read_text())
TOKENS = 24
pytest_plugins = ["pytester"]


def ids_of(source, tokens=TOKENS):
    return torch.randint(0, source.config.vocab_size, (tokens,), generator=torch.Generator().manual_seed(0))


def judged(folder, **options):
    source = Source(folder)
    return judge_checkpoint(source, ids_of(source), **options)


def red(report):
    return [stage["name"] for stage in report.stages if stage["verdict"] != "parity"]


# --- right ones ----------------------------------------------------------------------------------------------


QUICK = ("F1", "F2-2bit-DQ")


@pytest.mark.parametrize("variant", [pytest.param(v, marks=[] if v in QUICK else [pytest.mark.slow]) for v in VARIANTS])
def test_every_family_is_at_parity(checkpoint, variant):
    report = judged(checkpoint(variant))
    assert (report.verdict.value, red(report)) == ("parity", [])
    assert [stage["name"] for stage in report.stages] == names_of(Source(checkpoint(variant)).config)
    assert all(0 <= stage["ratio"] <= 1 for stage in report.stages)
    assert all(stage["ratio"] > 0 for stage in report.stages if stage["name"] != "embedding")
    assert all(stage["bytes"] > 0 and stage["taps"] for stage in report.stages)
    layers = [stage for stage in report.stages if stage["name"].startswith(("layer", "MTP"))]
    assert all({"attention", "experts", "streams"} <= {tap["name"] for tap in stage["taps"]} for stage in layers)
    assert all({choice["what"] for choice in stage["choices"]} >= {"ffn.gate"} for stage in layers)
    assert any({choice["what"] for choice in stage["choices"]} == {"ffn.gate", "attn.indexer"} for stage in layers)
    assert 0 <= report.text["kl"] < 0.02
    assert report.text["perplexity_got"] == pytest.approx(report.text["perplexity_truth"], rel=0.05)


def test_the_streamed_reference_is_the_reference(checkpoint):
    """Embedding, blocks whose experts are decoded when they are chosen, and the head: bit for bit."""
    folder = checkpoint("F1")
    source, model = Source(folder), reference_torch.load(folder, torch.float32)
    ids = ids_of(source)[None]
    streams = reference.embedded(source, ids[0])[None, :, None].expand(-1, -1, source.config.hc_mult, -1)
    with torch.no_grad():
        for index in range(source.config.num_hidden_layers):
            block = reference.StreamedBlock(source, index)
            (found,) = reference.observations(block, [reference.Asked(torch.float32, streams)], ids, {})
            streams = found.taps["streams"]
        (logits,) = reference.logits(source, [(reference.Head(source, "", torch.float32), streams, None)])
        assert torch.equal(logits, model(ids))


def test_experts_are_read_once_for_all_runs_and_only_those_that_are_chosen(checkpoint, monkeypatch):
    source = Source(checkpoint("F1"))
    ids = ids_of(source, 2)[None]
    streams = reference.embedded(source, ids[0])[None, :, None].expand(-1, -1, source.config.hc_mult, -1)
    block, read = reference.StreamedBlock(source, 3), []
    original = block.expert
    monkeypatch.setattr(block, "expert", lambda index: read.append(index) or original(index))
    asked = [reference.Asked(dtype, streams) for dtype in (torch.float32, torch.float64, torch.float32)]
    found = reference.observations(block, asked, ids, {"ffn.gate": "router"})
    chosen = torch.cat([one.picks["ffn.gate"].flatten() for one in found]).unique().tolist()
    assert read == chosen
    assert len(chosen) < source.config.n_routed_experts
    assert torch.equal(found[0].taps["streams"], found[2].taps["streams"])


def test_an_expert_takes_the_memory_of_the_last_and_its_values_are_right(checkpoint):
    """In each type its matrices are what the whole model holds, rounded to the type and kept wide."""
    folder = checkpoint("F1")
    source, whole = Source(folder), reference_torch.load(folder, torch.float32)
    block, places = reference.StreamedBlock(source, 3), set()
    for index in (5, 2):
        given = block.expert(index)
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            for leaf in ("w1", "w2", "w3"):
                value = getattr(given(dtype), leaf).weight
                expected = getattr(whole.layers[3].ffn.experts[index], leaf).weight.to(dtype)
                assert torch.equal(value, expected.to(value.dtype))
                places.add(value.data_ptr())
    assert len(places) == 9


def test_what_a_run_raises_is_raised(checkpoint):
    source = Source(checkpoint("F1"))
    ids = ids_of(source, 4)[None]
    wrong = torch.zeros(1, 4, source.config.hc_mult, 3)
    with pytest.raises(RuntimeError, match=r"shape|size"):
        reference.observations(reference.StreamedBlock(source, 0), [reference.Asked(torch.float32, wrong)] * 2, ids, {})


@pytest.mark.parametrize("variant", ["F1", "F3"])
def test_the_parts_are_the_model(checkpoint, variant):
    """dsv4_mlx block by block gives the very logits of the whole model."""
    model, parts = dsv4_mlx.load(checkpoint(variant)), Parts(checkpoint(variant))
    ids = mx.array(ids_of(Source(checkpoint(variant))).numpy())[None]
    streams = parts.first()(ids)
    for index in range(parts.args.num_hidden_layers):
        block = parts.block(index)
        state = LayerCache(block.attn.window, block.attn.ratio)
        streams = block(streams, ids, state.call(1, ids.shape[1]), state)
    assert mx.array_equal(parts.last()(streams), model(ids)).item()
    assert torch.equal(from_mlx(streams), from_mlx(model.streams(ids)))


# --- wrong ones ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("defect", "stage"),
    [
        ("D016", "layer 0"),
        pytest.param("X055", "layer 2", marks=pytest.mark.slow),  # in junit and markdown, below
        pytest.param("X026", "head", marks=pytest.mark.slow),
    ],
)
def test_a_defect_in_dsv4_mlx_is_red_at_its_first_stage(checkpoint, defect, stage):
    with applied([KNOWN[defect]], "dsv4_mlx"):
        report = judged(checkpoint("F1-float32"))
    assert report.verdict.value == "diverges"
    assert red(report)[0] == stage
    assert report.sentence.startswith(f"{stage} (")
    assert "times its limit" in report.sentence or "chose otherwise" in report.sentence


def test_a_stage_is_judged_alone(checkpoint):
    """What one layer does wrong makes no other red: each has the reference's streams."""
    attention = dsv4_mlx.attention.Attention
    original = attention.__call__

    def wrong(self, *arguments):
        out = original(self, *arguments)
        return out * 1.01 if self.ratio == 128 else out

    attention.__call__ = wrong
    try:
        report = judged(checkpoint("F1-float32"))
    finally:
        attention.__call__ = original
    assert red(report) == ["layer 3"]
    (layer,) = (stage for stage in report.stages if stage["name"] == "layer 3")
    assert "'attention'" in layer["sentence"] or "'streams'" in layer["sentence"] or "'experts'" in layer["sentence"]
    later = report.stages[-2]
    assert later["accumulated"]["relative"] > 10 * later["accumulated_baseline"]["relative"]


def test_a_candidate_that_raises_is_crashed_and_the_rest_is_judged(checkpoint, monkeypatch):
    original = dsv4_mlx.attention.Attention.__call__

    def breaks(self, *arguments):
        if self.ratio == 4:
            raise RuntimeError("no such kernel")
        return original(self, *arguments)

    monkeypatch.setattr(dsv4_mlx.attention.Attention, "__call__", breaks)
    report = judged(checkpoint("F1"))
    assert (report.verdict.value, red(report)) == ("crashed", ["layer 2"])
    assert report.sentence == (
        "layer 2 (ratio 4, hash-routed) is where dsv4_mlx fails first: raises RuntimeError: no such kernel."
    )
    assert report.text is None
    assert [stage["accumulated"] is None for stage in report.stages[1:4]] == [False, False, True]


# --- ended and gone on ---------------------------------------------------------------------------------------


def told(report):
    return json.dumps(report.to_dict() | {"clock": None})


@pytest.fixture(scope="session")
def whole(checkpoint):
    """What a run over F2 that nobody ends says."""
    return told(judged(checkpoint("F2")))


@pytest.mark.parametrize("stop", [pytest.param(n, marks=[] if n == 2 else [pytest.mark.slow]) for n in range(1, 7)])
def test_a_run_that_was_ended_goes_on_and_ends_the_same(checkpoint, whole, tmp_path, stop):
    said = []

    def ends(text):
        said.append(text)
        if len(said) > stop:
            raise KeyboardInterrupt

    ended = judged(checkpoint("F2"), resume=tmp_path / "run", progress=ends)
    assert ended.verdict.value == "interrupted"
    assert ended.sentence == f"Interrupted after {stop} of 7 stages."
    again = []
    report = judged(checkpoint("F2"), resume=tmp_path / "run", progress=again.append)
    assert again[0].startswith(f"{stop + 1} of 7: ")
    assert told(report) == whole
    assert [path.name for path in (tmp_path / "run").glob("*.partial")] == []
    assert told(judged(checkpoint("F2"), resume=tmp_path / "run", progress=pytest.fail)) == whole


def test_streams_come_back_where_torch_would_have_put_them(tmp_path):
    """In a file they lie anywhere, and sums are then made in another order: three of twenty killed runs ended with
    another last digit."""
    state = State(tmp_path / "run", {})
    given = {name: torch.arange(float(count)) for name, count in (("a", 3), ("exact", 40), ("input", 5), ("own", 7))}
    state.save("layer 0", {}, given, None)
    found = state.streams("layer 0")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {n: t.tolist() for n, t in given.items()}
    assert {tensor.data_ptr() % 64 for tensor in found.values()} == {0}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_kill_9_at_any_moment(checkpoint, tmp_path, seed):
    command = [sys.executable, "-m", "parity", "checkpoint", str(checkpoint("F2")), "--count", "40"]
    whole, resumed = tmp_path / "whole.json", tmp_path / "resumed.json"
    subprocess.run([*command, "--json", str(whole)], check=True, capture_output=True)
    command += ["--resume", str(tmp_path / "run"), "--json", str(resumed)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(random.Random(seed).uniform(2, 12))
    child.send_signal(signal.SIGKILL)
    child.wait()
    subprocess.run(command, check=True, capture_output=True)
    without = [{**json.loads(path.read_text()), "clock": None, "environment": None} for path in (whole, resumed)]
    assert json.dumps(without[0]) == json.dumps(without[1])


@pytest.fixture(autouse=True)
def silent(monkeypatch):
    """On a busy machine no line says what is being done."""
    monkeypatch.setattr(Progress, "EVERY", float("inf"))


def run(capsys, *arguments):
    code = cli.main(["checkpoint", *map(str, arguments)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    return code, captured.out, captured.err


def test_a_folder_of_another_run_is_refused(capsys, checkpoint, tmp_path):
    folder = tmp_path / "run"
    judged(checkpoint("F1"), resume=folder)
    code, _, said = run(capsys, checkpoint("F1"), "--count", 30, "--resume", folder)
    assert (code, said.count("\n")) == (2, 1)
    assert "belongs to another run (another tokens, ids); give --resume another folder." in said
    (folder / "layer 1.json").write_text("{")
    code, _, said = run(capsys, checkpoint("F2"), "--resume", tmp_path)
    assert (code, "holds other files" in said) == (2, True)
    with pytest.raises(Exception, match="damaged; delete"):
        judged(checkpoint("F1"), resume=folder)


# --- the command ---------------------------------------------------------------------------------------------


def test_the_command_shows_and_writes(capsys, checkpoint, tmp_path):
    target = tmp_path / "report.json"
    code, out, _ = run(capsys, checkpoint("F1"), "--count", 20, "--json", target)
    found = json.loads(target.read_text())
    jsonschema.validate(found, document.schema(SCHEMA))
    assert code == found["exit_code"] == 0
    assert found["sentence"] in " ".join(out.split()).replace(" .", ".")
    assert "MTP block 0" in out
    assert "KL divergence" in out
    assert "ratio 128" in out


def test_junit_and_markdown_say_the_same(capsys, checkpoint, tmp_path):
    paths = {name: tmp_path / name for name in ("json", "junit", "markdown")}
    with applied([KNOWN["X055"]], "dsv4_mlx"):
        code, _, _ = run(capsys, checkpoint("F1-float32"), *(word for n, p in paths.items() for word in (f"--{n}", p)))
    found = json.loads(paths["json"].read_text())
    suite = ElementTree.fromstring(paths["junit"].read_text())
    cases = {case.get("name"): [child.tag for child in case] for case in suite.iter("testcase")}
    assert (code, found["verdict"]) == (1, "diverges")
    assert cases == {s["name"]: ["failure"] * (s["verdict"] == "diverges") for s in found["stages"]}
    assert suite.get("failures") == str(sum(map(len, cases.values())))
    summary = paths["markdown"].read_text()
    assert summary.startswith("## ")
    assert "diverges (exit 1)" in summary.splitlines()[0]
    assert all(f"| {stage['name']} | {markdown.text(stage['kind'])} |" in summary for stage in found["stages"])
    assert "| KL divergence, mean |" in summary
    words = shlex.split(found["reproduce"])
    assert cli.parser().parse_args(words[1:]).folder == str(checkpoint("F1-float32"))


def ids_file(folder, text, name="ids.json"):
    (folder / name).write_text(text)
    return str(folder / name)


BAD = {
    "ids outside": (lambda d: ids_file(d, "[1, 2, 4000]"), "outside the checkpoint's vocabulary of 128"),
    "one id": (lambda d: ids_file(d, "[1]"), "gives a single token"),
    "no integers": (lambda d: ids_file(d, "[0.5, 1]"), "give one sequence of integer token ids"),
    "no file": (lambda d: str(d / "none.json"), "does not exist"),
    "nested": (lambda d: ids_file(d, "[[1, 2]]"), "one sequence of 1 to"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_tokens_are_one_sentence(capsys, checkpoint, tmp_path, what):
    make, words = BAD[what]
    code, _, said = run(capsys, checkpoint("F1"), "--tokens", make(tmp_path))
    assert (code, said.count("\n")) == (2, 1)
    assert words in said


@pytest.mark.parametrize("given", ["[3, 1, 4, 1, 5]", "w3 w1 w4 w1 w5"])
def test_tokens_from_a_file_or_a_text(capsys, checkpoint, tmp_path, given):
    target = tmp_path / "report.json"
    tokens = ids_file(tmp_path, given) if given[0] == "[" else given
    assert run(capsys, checkpoint("F1"), "--tokens", tokens, "--layers", "0-0", "--json", target)[0] == 0
    assert json.loads(target.read_text())["facts"]["tokens"] == 5


def damaged(folder, how):
    (shard,) = folder.glob("*.safetensors")
    if how == "no config":
        (folder / "config.json").unlink()
    elif how == "cut short":
        shard.write_bytes(shard.read_bytes()[:-1000])
    elif how == "no shard":
        shard.unlink()
    else:
        data = bytearray(shard.read_bytes())
        data[-64:] = b"\xff" * 64
        shard.write_bytes(bytes(data))
    return folder


@pytest.mark.parametrize("how", ["no config", "cut short", "no shard", "not finite"])
def test_a_damaged_folder_is_one_sentence_and_a_document(capsys, checkpoint, tmp_path, how):
    folder = damaged(Path(shutil.copytree(checkpoint("F1-bfloat16"), tmp_path / "copy")), how)
    target = tmp_path / "report.json"
    code, out, said = run(capsys, folder, "--count", 20, "--json", target)
    assert (code, said.count("\n"), out) == (2, 1, "")
    found = json.loads(target.read_text())
    jsonschema.validate(found, document.schema(SCHEMA))
    assert (found["verdict"], found["stages"]) == ("bad input", [])


# --- pytest --------------------------------------------------------------------------------------------------


def in_pytest(pytester, *arguments):
    return pytester.runpytest_inprocess("-p", "parity.pytest_full_model", "-p", "no:cacheprovider", *arguments)


def test_without_a_checkpoint_the_mark_says_how_to_run_it(pytester):
    pytester.makepyfile("def test_other(): pass")
    result = in_pytest(pytester, "-m", "full_model", "-rs")
    result.assert_outcomes(skipped=1, deselected=1)
    assert "name a checkpoint: pytest -m full_model --checkpoint DIR" in result.stdout.str()
    in_pytest(pytester).assert_outcomes(passed=1)
    in_pytest(pytester, "-m", "not full_model").assert_outcomes(passed=1)


def test_a_test_a_stage(pytester, checkpoint):
    given = ("-m", "full_model", "--checkpoint", str(checkpoint("F1")), "--tokens", "w3 w1 w4 w1 w5")
    in_pytest(pytester, *given, "-k", "not MTP").assert_outcomes(passed=7, deselected=1)
    with applied([KNOWN["D016"]], "dsv4_mlx"):
        result = in_pytest(pytester, *given)
    # The streams before layer 0 are equal: in bfloat16 no mixing of them shows. The last failure is the whole's.
    result.assert_outcomes(passed=3, failed=5)
    assert "layer 1 (window only, hash-routed): 'streams' has" in result.stdout.str()
    result = in_pytest(pytester, "-m", "full_model", "--checkpoint", "nowhere")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
