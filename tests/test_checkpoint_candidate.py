"""`parity checkpoint --candidate`: right ports are at parity on a checkpoint, wrong ones are not, whatever they do.

Run: pytest tests/test_checkpoint_candidate.py, and with -m slow for more families and ports
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import jsonschema
import pytest
import torch

from parity import cli
from parity.cases.resources import fixtures_path
from parity.commands.progress import Progress
from parity.errors import BadInput
from parity.judging.tolerance import measure
from parity.report import document
from parity.streamed.ranges import merged
from parity.streamed.results import SCHEMA
from parity.whole import port, sizes
from parity.whole.layers import LayerTruth, stages_of

FLASH = json.loads((fixtures_path() / "configs" / "flash.json").read_text())
PORTS = Path(__file__).parent / "candidates"
pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def silent(monkeypatch):
    """On a busy machine no line says what is being done."""
    monkeypatch.setattr(Progress, "EVERY", float("inf"))


@pytest.fixture(scope="module", autouse=True)
def one_truth():
    """The reference is the same for every port on the same tokens."""
    kept, asked = {}, port.reference_truth

    def known(source, ids, dtype, progress):
        key = source.folder, tuple(ids.tolist()), dtype
        if key not in kept:
            kept[key] = asked(source, ids, dtype, progress)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(port, "reference_truth", known)
        yield


def judged(capsys, folder, candidate, to, *options):
    """(exit code, document, standard error)."""
    given = ["--candidate", str(candidate), "--json", str(to), *map(str, options)]
    code = cli.main(["checkpoint", str(folder), *given, *["--count", "24"] * ("--tokens" not in options)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    found = json.loads(to.read_text())
    jsonschema.validate(found, document.schema(SCHEMA))
    assert code == found["exit_code"]
    return code, found, captured.err


@pytest.fixture
def ids(tmp_path):
    """A file of 24 random ids; the tiny tokenizer knows no word of the package's text."""
    drawn = torch.randint(0, 128, (24,), generator=torch.Generator().manual_seed(0)).tolist()
    (tmp_path / "ids.json").write_text(json.dumps(drawn))
    return tmp_path / "ids.json"


LAYERS = [f"layer {index}" for index in range(4)]

# --- right ones ------------------------------------------------------------------------------------------------

SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ("F1-float32", "unchanged.py"),
        ("F1", "dsv4_mlx"),
        pytest.param("F2", "dsv4_mlx", marks=SLOW),
        pytest.param("F3", "dsv4_mlx", marks=SLOW),
        pytest.param("F1-bfloat16", "unchanged.py", marks=SLOW),
    ],
)
def test_a_right_port_is_at_parity(capsys, checkpoint, ids, tmp_path, variant, name):
    candidate = PORTS / name if name.endswith(".py") else name
    code, found, _ = judged(capsys, checkpoint(variant), candidate, tmp_path / "r.json", "--tokens", ids)
    assert (code, [stage["name"] for stage in found["stages"]]) == (0, [*LAYERS, "port"])
    *layers, stage = found["stages"]
    assert all(0 < layer["ratio"] < 1 for layer in layers)
    assert [layer["kind"] for layer in layers] == [f"as layers.{i} of the port returns it" for i in range(4)]
    assert [tap["name"] for tap in stage["taps"]] == ["logits in one call", "logits token by token after a prompt"]
    assert 0 < stage["ratio"] < 0.8
    wide = found["facts"]["dtype"] == "float32"  # in bfloat16 no more is known than this
    said = "computes what the reference computes from" if wide else "agrees with the reference on 24 tokens of"
    assert found["sentence"].startswith(f"{candidate} {said} ")
    assert found["facts"]["candidate"] == str(candidate)
    assert found["text"]["kl"] < 0.02


@pytest.mark.parametrize(
    ("name", "note", "taps"),
    [
        ("needs_cache.py", "Not judged: in one call. The candidate does not run without a cache.", 1),
        ("takes_no_cache.py", "Not judged: token by token after a prompt. The candidate's call takes no cache.", 1),
        ("returns_last_only.py", "Gives the logits of each call's last token alone, in one call", 2),
    ],
)
def test_what_a_right_port_does_not_offer_is_a_note(capsys, checkpoint, ids, tmp_path, name, note, taps):
    code, found, _ = judged(capsys, checkpoint("F1-float32"), PORTS / name, tmp_path / "r.json", "--tokens", ids)
    assert (code, len(found["stages"][-1]["taps"])) == (0, taps)
    assert found["notes"][0].startswith(note)


def test_a_run_whose_choices_differ_at_some_tokens_is_as_near_as_the_others():
    """Another choice at token 1 of one run, at token 6 of another; and a run that is off everywhere."""
    exact = torch.randn(1, 8, 64, generator=torch.Generator().manual_seed(0))
    noise = [0.01 * torch.randn(exact.shape, generator=torch.Generator().manual_seed(n)) for n in (1, 2, 3)]
    baseline, other, off = (exact + one for one in noise)
    baseline[:, 1] += 1
    other[:, 6] -= 1
    off += 0.1
    assert port.Truth(exact, baseline, [], torch.arange(8) < 2).enough
    assert not port.Truth(exact, baseline, [], torch.arange(8) < 1).enough
    assert measure(*port.nearest([exact, baseline])[:2], [], port.nearest([exact, other])[1], "bfloat16").ratio < 0.6
    assert measure(*port.nearest([exact, baseline])[:2], [], port.nearest([exact, off])[1], "bfloat16").ratio > 2


# --- wrong ones -------------------------------------------------------------------------------------------------


def test_a_wrong_port_diverges_in_every_document(capsys, checkpoint, ids, tmp_path):
    paths = {name: tmp_path / name for name in ("junit", "markdown", "html")}
    files = [word for name, path in paths.items() for word in (f"--{name}", path)]
    given = (PORTS / "sees_one_less.py", tmp_path / "r.json", "--tokens", ids, *files)
    code, found, _ = judged(capsys, checkpoint("F1-float32"), *given)
    assert (code, found["verdict"]) == (1, "diverges")
    said = "deviates, and `parity gate` says in what: layer 0 (as layers.0 of the port returns it) is the first"
    assert said in found["sentence"]
    assert "'logits in one call' has" in found["sentence"]
    cases = [*ElementTree.fromstring(paths["junit"].read_text()).iter("testcase")]
    assert [case.get("name") for case in cases] == [*LAYERS, "port"]
    assert [child.tag for child in cases[-1]] == ["failure"]
    assert "sees\\_one\\_less.py" in paths["markdown"].read_text()
    page = paths["html"].read_text()
    assert "sees_one_less.py, on its own path so far" in page
    assert "stage alone" not in page
    assert "dsv4_mlx" not in page
    with pytest.raises(BadInput, match="has no parts to merge"):
        merged({"r.json": found})


ONE_LAYER = """
from dsv4_mlx import Model as Base
from dsv4_mlx import ModelArgs


class Model(Base):
    def load_weights(self, *given, **named):
        loaded = super().load_weights(*given, **named)
        self.layers[2].attn_norm.weight = 1.1 * self.layers[2].attn_norm.weight
        return loaded
"""


def test_the_first_layer_that_is_wrong_is_named(capsys, checkpoint, ids, tmp_path):
    (tmp_path / "one_layer.py").write_text(ONE_LAYER)
    given = (tmp_path / "one_layer.py", tmp_path / "r.json", "--tokens", ids)
    code, found, _ = judged(capsys, checkpoint("F1-float32"), *given)
    verdicts = [stage["verdict"] for stage in found["stages"]]
    assert (code, verdicts) == (1, ["parity", "parity", "diverges", "diverges", "diverges"])
    assert "layer 2 (as layers.2 of the port returns it) is the first that deviates" in found["sentence"]


def test_layers_that_no_module_gives_are_a_note():
    exact = torch.randn(1, 6, 4, 8, generator=torch.Generator().manual_seed(0))
    layer = LayerTruth(exact, exact + 1e-7, [], torch.ones(6, dtype=torch.bool))
    outputs = [("turned", exact.transpose(1, 2).numpy()), ("other", -exact.numpy())]
    assert stages_of(outputs, [layer], "float32", port.nearest) == ([], [0])
    (stage,), lost = stages_of([*outputs, ("block", exact.numpy() + 1e-7)], [layer], "float32", port.nearest)
    assert (stage.kind, stage.verdict.value, lost) == ("as block of the port returns it", "parity", [])
    (stage,), _ = stages_of([("block", exact.numpy() + 1e-3)], [layer], "float32", port.nearest)
    assert stage.verdict.value == "diverges"
    truth = port.Truth(exact, exact, [], layer.clear, [layer, layer])
    mute = SimpleNamespace(outputs=[], dtype="float32", notes=[], stage=stage)
    port.Port._look_inside(mute, truth)
    assert mute.notes == ["No module of the port gives the streams of layers 0, 1."]


def test_a_wrong_port_diverges_in_bfloat16(capsys, checkpoint, ids, tmp_path):
    code, found, _ = judged(
        capsys, checkpoint("F1-bfloat16"), PORTS / "sees_one_less.py", tmp_path / "r.json", "--tokens", ids
    )
    assert (code, found["facts"]["dtype"]) == (1, "bfloat16")
    assert found["stages"][-1]["ratio"] > 2


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        (
            "only_mlx_community.py",
            4,
            "could not be judged. The candidate raised ValueError while loading the checkpoint",
        ),
        ("returns_wrong_shape.py", 1, "in one call it gave logits of shape [1, 24] where [1, 24, 128] was asked for"),
        ("returns_nan.py", 1, "in one call it gave logits that are not finite"),
        ("lacks_imports.py", 3, "imports what is not installed: no_other_library, no_such_library"),
        ("lacks_typing.py", 4, "name 'Any' is not defined."),
        ("needs_metal.py", 5, "needs Metal, which this machine does not have"),
        ("calls_os_exit.py", 4, "ended its process with os._exit(3)"),
    ],
)
def test_whatever_a_port_does_is_one_sentence(capsys, checkpoint, ids, tmp_path, name, code, words):
    found = judged(capsys, checkpoint("F1-float32"), PORTS / name, tmp_path / "r.json", "--tokens", ids)
    assert (found[0], found[1]["text"]) == (code, None)
    assert words in found[1]["sentence"]
    assert "--mend-imports" not in found[1]["sentence"]


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--layers", "0-1"], "--layers is of a run block by block"),
        (["--original", "x"], "--original is of a run block by block"),
        (["--resume", "x"], "--resume is of a run block by block"),
        (["--generate"], "Give one of them"),
        (["--dtype", "float32"], "--dtype is of dsv4_mlx"),
        (["--record", "x"], "--record goes with --generate"),
        (["--tokens", "w1"], "2 tokens at least"),
        (["--memory", "0.1"], "--candidate needs the whole model of"),
    ],
)
def test_options_that_cannot_be(capsys, checkpoint, tmp_path, options, words):
    code, found, said = judged(capsys, checkpoint("F1"), "dsv4_mlx", tmp_path / "r.json", *options)
    assert (code, found["verdict"], said.count("\n")) == (2, "bad input", 1)
    assert words in said


def test_what_is_no_port_is_refused(capsys, checkpoint, tmp_path):
    code, _, said = judged(capsys, checkpoint("F1"), "no_such_port", tmp_path / "r.json")
    assert (code, "is no word and no installed module" in said) == (2, True)
    recording = tmp_path / "recording"
    recording.mkdir()
    (recording / "recording.json").write_text("{}")
    code, _, said = judged(capsys, checkpoint("F1"), recording, tmp_path / "r.json")
    assert (code, "needs the port itself" in said) == (2, True)


def test_no_room_for_the_copy_and_none_for_the_model(capsys, checkpoint, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
        code, _, said = judged(capsys, checkpoint("F1"), "dsv4_mlx", tmp_path / "r.json")
    assert (code, "has no room; set TMPDIR" in said) == (3, True)
    monkeypatch.setattr(sizes, "machine", lambda: 0.1)
    code, _, said = judged(capsys, checkpoint("F1"), "dsv4_mlx", tmp_path / "r.json")
    assert (code, "more than this machine's 0.1 GiB" in said) == (2, True)


def test_a_test_in_pytest(pytester, checkpoint, ids):
    given = ("-p", "parity.pytest_full_model", "-p", "no:cacheprovider", "-m", "full_model", f"--tokens={ids}")
    given += (f"--checkpoint={checkpoint('F1-float32')}",)
    pytester.runpytest_inprocess(*given, "--candidate=dsv4_mlx").assert_outcomes(passed=1)
    result = pytester.runpytest_inprocess(*given, f"--candidate={PORTS / 'sees_one_less.py'}")
    result.assert_outcomes(failed=1)
    assert "port (whole, its logits): layer 0 (as layers.0 of the port returns it) is the first" in result.stdout.str()
