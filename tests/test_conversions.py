"""`parity checkpoint --original`: honest conversions are at parity; what rounding does not explain is red at its layer,
and the tensor is named.

Run: pytest tests/test_conversions.py, and with -m slow for every recipe and every mistake
"""

import json
import shutil
from functools import cache
from itertools import pairwise
from xml.etree import ElementTree

import jsonschema
import mlx.core as mx
import pytest
import torch

from dsv4_checkpoints import Format
from dsv4_mlx.conversion import convert, recipe_of
from parity import cli
from parity.cases.resources import fixtures_path
from parity.conversion import weights
from parity.conversion.honest import floor, honest, in_groups, moved
from parity.conversion.weights import LIMIT
from parity.gate.defects import catalogue
from parity.gate.defects.patching import applied
from parity.jobs.checkpoint import judge_checkpoint
from parity.jobs.fixture import write_fixture
from parity.report import document
from parity.streamed.results import SCHEMA
from parity.streamed.source import Source

FLASH = json.loads((fixtures_path() / "configs" / "flash.json").read_text())
TOKENS = 48
pytest_plugins = ["pytester"]
FOUR = {"*.ffn.gate": False, "*": {"bits": 4, "group_size": 64}}
RECIPES = {
    "2 bits": {"*.ffn.gate": False, "*": {"bits": 2, "group_size": 32}},
    "3 bits": {"*.ffn.gate": False, "*": {"bits": 3, "group_size": 64}},
    "4 bits": FOUR,
    "6 bits": {"*.ffn.gate": False, "*": {"bits": 6, "group_size": 64}},
    "8 bits": {"*.ffn.gate": False, "*": {"bits": 8, "group_size": 64}},
    "mxfp4": {"*.ffn.gate": False, "*": {"mode": "mxfp4"}},
    "mxfp8": {"*.ffn.gate": False, "*": {"mode": "mxfp8"}},
    "nvfp4": {"*.ffn.gate": False, "*": {"mode": "nvfp4"}},
    "mixed": {
        "*.ffn.gate": False, "*.switch_mlp.down_proj": {"bits": 4}, "*.switch_mlp.*": {"bits": 2, "group_size": 32},
        "*.attn.*": {"bits": 6}, "*": {"bits": 8},
    },
    "as it is": {"*": "keep"},
}  # fmt: skip


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    """original("F1-bfloat16", seed, size) is a checkpoint of that variant, tiny unless told otherwise."""
    root = tmp_path_factory.mktemp("originals")

    @cache
    def made(variant, seed, size):
        return write_fixture(root / f"{variant}-{seed}-{size}", FLASH, variant, size, seed=seed)

    return lambda variant, seed=0, size="tiny": made(variant, seed, size)


@pytest.fixture(scope="session")
def conversion(tmp_path_factory, original):
    """conversion(recipe, variant, seed, size) is an honest conversion."""
    root = tmp_path_factory.mktemp("conversions")

    @cache
    def made(recipe, variant, seed, size):
        to = root / f"{recipe.replace(' ', '-')}-{variant}-{seed}-{size}"
        return convert(original(variant, seed, size), to, "F2", recipe_of(RECIPES[recipe]), progress=lambda text: None)

    return lambda recipe="4 bits", variant="F1-bfloat16", seed=0, size="tiny": made(recipe, variant, seed, size)


def judged(original, conversion, tokens=TOKENS, **options):
    first, other = Source(original), Source(conversion, complain=False)
    ids = torch.randint(0, first.config.vocab_size, (tokens,), generator=torch.Generator().manual_seed(0))
    return judge_checkpoint(other, ids, original=first, **options)


def red(report):
    return [stage["name"] for stage in report.stages if stage["verdict"] != "parity"]


# --- honest ones -----------------------------------------------------------------------------------------------

PLAIN_QUICK, PACKED_QUICK = ("mxfp4", "mixed"), ("as it is",)
HONEST = [("F1-bfloat16", recipe, recipe in PLAIN_QUICK) for recipe in RECIPES]
HONEST += [("F1", recipe, recipe in PACKED_QUICK) for recipe in RECIPES]


@pytest.mark.parametrize(
    ("variant", "recipe", "size"),
    [pytest.param(v, r, "tiny", marks=[] if quick else [pytest.mark.slow]) for v, r, quick in HONEST]
    + [pytest.param(v, r, "mid", marks=[pytest.mark.slow]) for v, r, _ in HONEST],
)
def test_honest_conversions_are_at_parity_with_their_figures(original, conversion, variant, recipe, size):
    of, made = original(variant, size=size), conversion(recipe, variant, size=size)
    report = judged(of, made)
    assert (report.verdict.value, red(report)) == ("parity", [])
    assert report.sentence.startswith(f"{made} is {of}, honestly rounded")
    for stage in report.stages[1:]:
        assert stage["weights"]
        for row in stage["weights"]:
            assert row["sqnr"] == row["sqnr_honest"]  # it was made as MLX rounds
            assert 0 <= row["ratio"] <= 0.5 or row["stored"] == "f32"
    if recipe != "as it is":
        assert 0 < report.text["kl"] < 2
    if recipe in ("2 bits", "3 bits", "mixed"):  # with more bits a tie or two among the experts is most of it
        assert report.text["kl"] == pytest.approx(report.text_baseline["kl"], rel=0.2)


@pytest.mark.slow
def test_more_bits_are_nearer(original, conversion):
    reports = [judged(original("F1-bfloat16"), conversion(recipe)) for recipe in ("2 bits", "4 bits", "8 bits")]
    kl = [report.text["kl"] for report in reports]
    sqnr = [report.stages[3]["weights"][-1]["sqnr"] for report in reports]
    assert kl == sorted(kl, reverse=True)
    assert [round(after - before) for before, after in pairwise(sqnr)] == [12, 23]


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_another_honest_rounding_is_within_the_limit_and_a_wrong_scale_is_not(bits):
    stored, values = Format("affine", bits, 64), torch.randn(64, 256, generator=torch.Generator().manual_seed(bits))
    rounded = honest(values, stored, "BF16")

    def ratio(converted):
        error, least = (in_groups(x - values, stored).square().mean(-1).sqrt() for x in (converted, rounded))
        return float((error / (LIMIT * torch.maximum(least, floor(in_groups(values, stored), stored, "BF16")))).max())

    assert ratio(rounded) == pytest.approx(0.5)
    assert 0.5 < ratio(moved(values, rounded, stored, "BF16")) < 0.75
    assert ratio(honest(values, stored, "F16")) < 0.75
    codes = ((rounded[3, :64] - rounded[3, :64].min()) / 2) + rounded[3, :64].min()
    wrong = rounded.clone()
    wrong[3, :64] = codes  # the scale halved, the bias kept
    assert ratio(wrong) > 1


# --- what rounding does not explain --------------------------------------------------------------------------------


def spoiled(folder, to, change):
    """A copy of a folder whose tensors, and config, `change` has changed."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    files = {path: dict(mx.load(str(path))) for path in sorted(to.glob("*.safetensors"))}
    tensors = {name: value for held in files.values() for name, value in held.items()}
    before = dict(tensors)
    change(tensors, config)
    for path, held in files.items():
        kept = {name: tensors[name] for name in held if name in tensors}
        if any(tensors.get(name) is not before[name] for name in held):
            mx.eval(kept)
            path.unlink()
            mx.save_safetensors(str(path), kept, {"format": "mlx"})
    (to / "config.json").write_text(json.dumps(config))
    gone = before.keys() - tensors.keys()
    index = to / "model.safetensors.index.json"
    if gone and index.exists():
        told = json.loads(index.read_text())
        told["weight_map"] = {name: at for name, at in told["weight_map"].items() if name not in gone}
        index.write_text(json.dumps(told))
    return to


PARTS = ("weight", "scales", "biases")
AT = "model.layers.1."


def swap(tensors, one, other):
    for part in PARTS:
        tensors[f"{one}.{part}"], tensors[f"{other}.{part}"] = tensors[f"{other}.{part}"], tensors[f"{one}.{part}"]


def edited(name, how):
    def change(tensors, config):
        tensors[name] = how(tensors[name])

    return change


def one_scale(tensors, config):
    name = f"{AT}attn.wq_b.scales"
    scales = tensors[name] * mx.ones_like(tensors[name])
    scales[5, 0] = scales[5, 0] / 2
    tensors[name] = scales


def experts_swapped(tensors, config):
    for leaf in ("gate_proj", "up_proj", "down_proj"):
        for part in PARTS:
            name = f"{AT}ffn.switch_mlp.{leaf}.{part}"
            tensors[name] = tensors[name][mx.array([0, 4, 2, 3, 1, *range(5, len(tensors[name]))])]


def override_ignored(tensors, config):
    told = {"group_size": 64, "bits": 4, "layers.1.attn.wq_b": {"group_size": 64, "bits": 8}}
    config["quantization"] = config["quantization_config"] = told


def transposed(tensors, config):
    name = f"{AT}attn.wo_b"
    packed = [tensors[f"{name}.{part}"] for part in PARTS]
    values = mx.dequantize(*packed, group_size=64, bits=4).T
    for part, value in zip(PARTS, mx.quantize(values, group_size=64, bits=4), strict=True):
        tensors[f"{name}.{part}"] = value


def twice_rounded(tensors, config):
    name = f"{AT}attn.wo_b"
    packed = [tensors[f"{name}.{part}"] for part in PARTS]
    values = mx.dequantize(*packed, group_size=64, bits=4)
    coarse = mx.dequantize(*mx.quantize(values, group_size=64, bits=2), group_size=64, bits=2)
    for part, value in zip(PARTS, mx.quantize(coarse, group_size=64, bits=4), strict=True):
        tensors[f"{name}.{part}"] = value


def dropped(name):
    def change(tensors, config):
        del tensors[name]

    return change


def setting(name, value):
    def change(tensors, config):
        config[name] = value

    return change


def rolled(x):
    return mx.concatenate([x[1:], x[:1]])


# Name -> what spoils the conversion, the stage, the tensor in published names, and a word of what is said.
MISTAKES = {
    "one scale of one group halved": (one_scale, "layer 1", "layers.1.attn.wq_b.weight", "row 5, columns 0 to 63"),
    "two experts swapped": (experts_swapped, "layer 1", "layers.1.ffn.experts.1.w", "experts.4.w"),
    "gate and up swapped in one layer": (
        lambda t, c: swap(t, f"{AT}ffn.switch_mlp.gate_proj", f"{AT}ffn.switch_mlp.up_proj"),
        "layer 1", "layers.1.ffn.experts.", "w3",
    ),
    "an override that was not applied": (override_ignored, "files", "layers.1.attn.wq_b", "8 bits in groups of 64"),
    "a matrix transposed": (transposed, "layer 1", "layers.1.attn.wo_b.weight", "transposed"),
    "tid2eid moved by a row": (
        edited("model.layers.0.ffn.gate.tid2eid", rolled), "layer 0", "layers.0.ffn.gate.tid2eid", "moved by one row"),
    "tid2eid one too high": (
        edited("model.layers.0.ffn.gate.tid2eid", lambda x: (x + 1) % (x.max() + 1)),
        "layer 0", "layers.0.ffn.gate.tid2eid", "numbers are 1 too high",
    ),
    "a norm left out": (dropped(f"{AT}attn.q_norm.weight"), "files", "layers.1.attn.q_norm.weight", "is missing"),
    "a norm of ones": (
        edited(f"{AT}attn.q_norm.weight", mx.ones_like), "layer 1", "layers.1.attn.q_norm.weight", "is 1 everywhere"),
    "the router's biases dropped": (
        edited("model.layers.3.ffn.gate.e_score_correction_bias", mx.zeros_like),
        "layer 3", "layers.3.ffn.gate.bias", "is 0 everywhere",
    ),
    "a matrix's biases dropped": (
        edited(f"{AT}attn.wq_a.biases", mx.zeros_like), "layer 1", "layers.1.attn.wq_a.weight", "moved by"),
    "a matrix doubled": (
        lambda t, c: [edited(f"{AT}attn.wo_a.{part}", lambda x: 2 * x)(t, c) for part in PARTS[1:]],
        "layer 1", "layers.1.attn.wo_a.weight", "2 times the original's",
    ),
    "sinks of another layer": (
        lambda t, c: t.update({f"{AT}attn.attn_sink": t["model.layers.2.attn.attn_sink"] + 0}),
        "layer 1", "layers.1.attn.attn_sink", "holds the original's layers.2.attn.attn_sink",
    ),
    "a matrix of another layer": (
        lambda t, c: [t.update({f"{AT}attn.wkv.{p}": t[f"model.layers.2.attn.wkv.{p}"] + 0}) for p in PARTS],
        "layer 1", "layers.1.attn.wkv.weight", "holds the original's layers.2.attn.wkv.weight",
    ),
    "the mixing of the two sites swapped": (
        lambda t, c: t.update({f"{AT}attn_hc.fn": t[f"{AT}ffn_hc.fn"], f"{AT}ffn_hc.fn": t[f"{AT}attn_hc.fn"]}),
        "layer 1", "layers.1.hc_", "holds the original's layers.1.hc_",
    ),
    "positions of a compressor moved": (
        edited("model.layers.2.attn.compressor.ape", rolled), "layer 2", "layers.2.attn.compressor.ape", ""),
    "the embedding moved by a row": (
        lambda t, c: [edited(f"model.embed_tokens.{part}", rolled)(t, c) for part in PARTS],
        "embedding", "embed.weight", "",
    ),
    "the head tied to the embedding": (
        lambda t, c: [t.update({f"lm_head.{part}": t[f"model.embed_tokens.{part}"] + 0}) for part in PARTS],
        "head", "head.weight", "",
    ),
    "rounded twice, first to two bits": (twice_rounded, "layer 1", "layers.1.attn.wo_b.weight", "groups beyond"),
    "another limit of the SwiGLU": (setting("swiglu_limit", 7.0), "files", "swiglu_limit", "7.0"),
    "another base of the rotation": (setting("rope_theta", 1e6), "files", "rope_theta", "1000000.0"),
}  # fmt: skip
SPOILED_QUICK = ("one scale of one group halved", "an override that was not applied", "tid2eid moved by a row")


@pytest.mark.parametrize(
    ("name", "size"),
    [pytest.param(one, "tiny", marks=[] if one in SPOILED_QUICK else [pytest.mark.slow]) for one in MISTAKES]
    + [pytest.param(one, "mid", marks=[pytest.mark.slow]) for one in MISTAKES],
)
def test_what_rounding_does_not_explain_is_named(original, conversion, tmp_path, name, size):
    change, stage, tensor, said = MISTAKES[name]
    report = judged(original("F1-bfloat16", size=size), spoiled(conversion(size=size), tmp_path / "spoiled", change))
    assert report.verdict.value == "diverges"
    assert red(report) == [stage]
    found = next(one for one in report.stages if one["name"] == stage)
    assert tensor in found["sentence"]
    assert said in found["sentence"]
    assert found["sentence"] in report.sentence


def test_an_expert_that_no_token_chose_is_compared_too(original, conversion, tmp_path):
    source = Source(original("F1-bfloat16"))
    ids = torch.tensor([3, 5, 7])
    chosen = {*source["layers.1.ffn.gate.tid2eid"][ids].flatten().tolist()}
    left = min({*range(source.config.n_routed_experts)} - chosen)

    def change(tensors, config):
        name = f"{AT}ffn.switch_mlp.gate_proj.scales"
        tensors[name] = tensors[name] * (mx.arange(source.config.n_routed_experts) != left)[:, None, None]

    other = Source(spoiled(conversion(), tmp_path / "spoiled", change), complain=False)
    report = judge_checkpoint(other, ids, original=source)
    assert red(report) == ["layer 1"]
    assert report.stages[3]["wrong"][0].startswith(f"layers.1.ffn.experts.{left}.w1.weight ")
    assert len(report.stages[3]["wrong"]) == 1


@pytest.mark.slow
def test_a_layer_of_another_checkpoint(original, conversion, tmp_path):
    other = {}
    for path in conversion(seed=1).glob("*.safetensors"):
        other |= mx.load(str(path))

    def change(tensors, config):
        tensors.update({name: other[name] for name in tensors if name.startswith(AT)})

    report = judged(original("F1-bfloat16"), spoiled(conversion(), tmp_path / "spoiled", change))
    assert red(report) == ["layer 1"]
    assert "more of 45 tensors deviate" in report.sentence
    assert sum("of no tensor that was looked at" in said for said in report.stages[3]["wrong"]) > 6


def test_a_stage_looks_for_so_many_only(original, conversion, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SEARCHES", 3)
    report = judged(original("F1-bfloat16"), spoiled(conversion(), tmp_path / "spoiled", experts_swapped))
    said = [one.partition(" holds ")[2] for one in report.stages[3]["wrong"]]
    assert len(said) == 6
    assert said.count("other values than the original's, of no tensor that was looked at") == 6


@pytest.mark.parametrize(("defect", "recipe"), [("D016", "8 bits"), ("X026", "as it is")], ids=["block", "head"])
def test_a_wrong_model_is_told_from_wrong_weights(original, conversion, defect, recipe):
    with applied([catalogue()[defect]], "dsv4_mlx"):
        report = judged(original("F1-bfloat16"), conversion(recipe))
    assert report.verdict.value == "diverges"
    assert "its tensors are what rounding explains, so the model that runs them is suspect" in report.sentence


def test_a_run_that_was_ended_goes_on(original, conversion, tmp_path):
    class Ended(Exception):
        pass

    def end(text):
        if "layer 2" in text:
            raise Ended

    whole = judged(original("F1-bfloat16"), conversion()).to_dict() | {"clock": {}}
    with pytest.raises(Ended):
        judged(original("F1-bfloat16"), conversion(), resume=tmp_path / "state", progress=end)
    resumed = judged(original("F1-bfloat16"), conversion(), resume=tmp_path / "state").to_dict() | {"clock": {}}
    assert resumed == whole


# --- the command -----------------------------------------------------------------------------------------------


def told(*words):
    """The exit code."""
    return cli.main(["checkpoint", *map(str, words), "--count", "24"])


def test_the_command_tells_every_reader(original, conversion, tmp_path, capsys):
    folder = spoiled(conversion(), tmp_path / "spoiled", experts_swapped)
    files = {name: tmp_path / f"report.{name}" for name in ("json", "markdown", "junit")}
    options = [word for name, path in files.items() for word in (f"--{name}", path)]
    assert told(folder, "--original", original("F1-bfloat16"), *options) == 1
    shown = " ".join(capsys.readouterr().out.split())
    found = json.loads(files["json"].read_text())
    jsonschema.validate(found, document.schema(SCHEMA))
    assert found["reproduce"].endswith(f"--original {original('F1-bfloat16')}")
    stage = found["stages"][3]
    assert [stage["name"], len(stage["wrong"])] == ["layer 1", 6]
    for said in stage["wrong"]:
        assert " holds the original's layers.1.ffn.experts." in said
        assert said.split("holds")[0].strip() in shown
        assert said.replace("_", "\\_").split(" holds")[0] in files["markdown"].read_text()
    case = next(c for c in ElementTree.parse(files["junit"]).iter("testcase") if c.get("name") == "layer 1")
    assert stage["wrong"][0] in case.find("failure").get("message")
    assert all(said in case.find("failure").text for said in stage["wrong"])


def test_what_cannot_be_compared_is_one_sentence(original, conversion, tmp_path, capsys):
    other = write_fixture(tmp_path / "mid", FLASH, "F1-bfloat16", size="mid")
    for first, second, said in (
        (conversion(), conversion(), "is its own --original"),
        (conversion(), tmp_path / "nowhere", "nowhere"),
        (conversion(), other, "The two folders are of models of other sizes: vocab_size, hidden_size"),
    ):
        assert told(first, "--original", second) == 2
        assert said in " ".join(capsys.readouterr().err.split())


def test_pytest_has_a_test_for_the_files_too(original, conversion, tmp_path, pytester):
    spoiled(conversion(), tmp_path / "spoiled", setting("swiglu_limit", 7.0))
    given = [f"--checkpoint={tmp_path / 'spoiled'}", f"--original={original('F1-bfloat16')}", "--tokens=a few words"]
    result = pytester.runpytest_inprocess(
        "-p", "parity.pytest_full_model", "-p", "no:cacheprovider", "-m", "full_model", *given
    )
    result.assert_outcomes(failed=2, passed=7)
    result.stdout.fnmatch_lines(["*files (config and tensors): config.json has swiglu_limit 7.0*"])
