"""Recordings of candidates: judged in the port's place they give its report, and broken or hostile ones one sentence.

Run: pytest tests/test_recording.py
"""

import contextlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from parity import cli
from parity.candidates import told
from parity.candidates.adapters import problems
from parity.errors import BadInput
from parity.gate import confirm, filling, playing, recording
from parity.gate.families import family
from parity.gate.probes import of_profile, registry
from parity.gate.results import Candidate, GateReport
from parity.jobs import gate
from parity.jobs.gate_command import Asked
from parity.results import Verdict

CANDIDATES = Path(__file__).parent / "candidates"
PROBES = ("embedding", "hc.comb", "mtp")


def judged(monkeypatch, candidate, probes, *options):
    """(exit code, document) of a command that runs these probes."""
    monkeypatch.setattr(gate, "of_profile", lambda profile: probes)
    known = {key: one for key, one in filling.KNOWN.items() if one.probe in probes}
    monkeypatch.setattr(filling, "KNOWN", known)
    out = Path(os.environ["PYTEST_FOLDER"], "report.json")
    code = cli.main(["gate", str(candidate), *options, "--json", str(out)])
    return code, json.loads(out.read_text())


def named(*names):
    return [probe for probe in of_profile("quick") if probe.mechanism in names]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """recorded(candidate, names of probes) is its document and its recording, made once."""
    folder, made = tmp_path_factory.mktemp("recordings"), {}

    def record(candidate, names=PROBES, *options):
        key = (candidate, names, options)
        if key not in made:
            place = folder / str(len(made))
            target = candidate if candidate == "dsv4_mlx" else CANDIDATES / f"{candidate}.py"
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PYTEST_FOLDER", str(folder))
                made[key] = judged(patch, target, named(*names), "--record", str(place), *options)[1], place
        return made[key]

    return record


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTEST_FOLDER", str(tmp_path))


@pytest.fixture
def portless(monkeypatch):
    """No process is started from here on: called where a recording has been made."""

    def start(*arguments):
        raise AssertionError("a recording needs no port")

    return lambda: monkeypatch.setattr(gate, "Process", start)


def comparable(document, live):
    """A document without what may differ: clock, the line that reproduces it, in any text the candidate's name."""
    text = json.dumps(document | {"clock": None, "reproduce": None})
    own, port = (json.dumps(one["candidate"]["name"])[1:-1] for one in (document, live))
    return json.loads(text.replace(own, port))


# --- the same report -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("candidate", "names", "holds"),
    [
        ("mixes_untransposed", PROBES, ["D016", '"coverage gap"', "Inside the port"]),
        ("segfaults", ("embedding", "hc.comb"), ["segfaulted", '"crashed"']),
        pytest.param("returns_random", ("embedding",), ["gave other logits when asked again"], marks=pytest.mark.slow),
        ("only_short_prefix", ("embedding", "weights.fp8"), ["Judged on family F3", '"parity"']),
        ("lacks_imports", ("embedding",), ["imports what is not installed", '"environment"']),
        ("exits_on_import", ("embedding",), ["could not be judged", '"crashed"']),
        pytest.param("fails_later", ("embedding", "hc.comb"), ["with its lines watched"], marks=pytest.mark.slow),
        pytest.param("returns_nan", ("embedding",), ["not finite"], marks=pytest.mark.slow),
        pytest.param("returns_integers", ("embedding",), ["gave logits of type"], marks=pytest.mark.slow),
        pytest.param("returns_wrong_shape", ("embedding",), ["gave logits of shape"], marks=pytest.mark.slow),
        pytest.param("compiles_a_number", ("model.flash",), ["with mx.compile at work"], marks=pytest.mark.slow),
        pytest.param("dsv4_mlx", ("model.flash",), ['"caches"', '"lives"', '"parity"'], marks=pytest.mark.slow),
    ],
)
def test_a_recording_gives_the_ports_report(recorded, portless, monkeypatch, candidate, names, holds):
    live, folder = recorded(candidate, names)
    text = json.dumps(live)
    assert [word for word in holds if word not in text] == []  # the case shows what it is here for
    portless()
    code, again = judged(monkeypatch, folder, named(*names))
    assert code == live["exit_code"]
    assert again["candidate"]["name"] == f"{folder} (a recording of {live['candidate']['name']})"
    assert again["reproduce"] == f"parity gate {folder}"
    assert comparable(again, live) == comparable(live, live)


def test_what_was_asked_of_the_port_is_asked_of_the_recording(recorded, portless, monkeypatch):
    live, folder = recorded("unchanged", ("embedding",), "--require", "caches", "--seed", "5", "--family", "raw")
    portless()
    _, again = judged(monkeypatch, folder, named("embedding"))
    assert (live["verdict"], live["seed"]) == ("coverage gap", 5)
    assert comparable(again, live) == comparable(live, live)
    for options in (("--seed", "5"), ("--profile", "quick"), ("--family", "raw")):
        assert judged(monkeypatch, folder, named("embedding"), *options)[0] == live["exit_code"]


def test_a_kind_that_is_known_to_offer_more_is_held_to_it(recorded, portless, monkeypatch):
    _, folder = recorded("dsv4_mlx", ("embedding",))
    portless()
    _, again = judged(monkeypatch, folder, named("embedding", "hc.comb"))
    assert (again["candidate"]["kind"], again["verdict"]) == ("dsv4_mlx", "coverage gap")
    assert "that it is known" not in again["sentence"]
    assert "is known to offer were judged (hc.comb" in again["sentence"]


def test_an_array_is_kept_once_and_nothing_is_code(recorded):
    _, folder = recorded("mixes_untransposed")
    assert sorted(path.name for path in folder.iterdir()) == ["arrays.safetensors", "recording.json"]
    arrays = load_file(folder / "arrays.safetensors")
    manifest = json.loads((folder / "recording.json").read_text())
    logits = [given["logits"] for one in manifest["asked"] for given in one["given"] if "logits" in given]
    assert len({*logits}) < len(logits)
    assert {*logits} <= arrays.keys()
    assert {array.dtype for array in arrays.values()} == {np.dtype("float32")}


# --- whatever crosses the protocol, with a port of straw -------------------------------------------------------------


LIVES = {"do": "lives", "sequences": 1, "operations": 2, "seed": 3, "generation": True}
SERVED = {"do": "serve", "schedule": "steps", "seed": 3}


class Straw:
    """An engine that answers what it is told to, in order."""

    def __init__(self, *answers):
        self.answers, self.dtype = [*answers], "bfloat16"
        self.facts = {"file": "port.py", "line": 3, "versions": {"mlx": "1"}, "other": object()}

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def answer(self, *question):
        given = self.answers.pop(0)
        if isinstance(given, Exception):
            raise given
        return given

    load = run = mtp = lives = taps = answer

    @contextlib.contextmanager
    def compiled(self):
        self.answer()
        yield
        self.answer()


def again(engine, folder):
    """The recording of an engine, read."""
    report = GateReport(Candidate("straw", "module"), "quick", 0, Verdict.PARITY, "")
    engine.write(folder, report, Asked().settled().settings)
    return playing.read(folder)


def outcome(doing):
    try:
        return doing()
    except problems.CandidateProblem as problem:
        return type(problem), str(problem), getattr(problem, "names", None)


@pytest.fixture
def checkpoint(tmp_path):
    return family(registry()["embedding"], 0).write(tmp_path / "embedding")


IDS = np.arange(6, dtype=np.int32)[None]


def test_problems_and_arrays_come_back_in_order(checkpoint, tmp_path):
    arrays = [
        np.array([[1, np.nan], [np.inf, -0.0]], np.float32),
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        np.float32(2) * np.ones(()).astype(np.float32),
        np.zeros((0, 5), np.float32),
    ]
    raised = [
        kind(f"It is {kind.__name__}.")
        for kind in problems.CandidateProblem.__subclasses__()
        if kind.__name__ in playing.PROBLEMS and kind is not problems.MissingImports
    ]
    raised.append(problems.MissingImports("It lacks a and b.", ["a", "b"]))
    assert len(raised) == 7
    ask = lambda engine: outcome(lambda: engine.run("decode", IDS, (2, 4), True))  # noqa: E731
    with recording.Recorder(Straw(None, *arrays, *raised)) as engine:
        engine.load(checkpoint)
        live = [ask(engine) for _ in (*arrays, *raised)]
    with again(engine, tmp_path / "recording") as player:
        assert player.facts == {"file": "port.py", "line": 3, "versions": {"mlx": "1"}}
        player.load(checkpoint)
        for was, now in zip(live, [ask(player) for _ in live], strict=True):
            if isinstance(was, tuple):
                assert now == was
            else:
                assert (now.shape, now.dtype, now.tobytes()) == (was.shape, np.float32, was.tobytes())
        assert player.dtype == "bfloat16"
        assert ask(player) == live[-1]  # asked more often than the port was: the last answer
        for question in (
            lambda: player.run("decode", IDS, (3, 3), True),
            lambda: player.run("decode", IDS + 1, (2, 4), True),
            lambda: player.run("decode", IDS, (2, 4), False),
        ):
            assert outcome(question)[:2] == (playing.NotRecorded, playing.CHANGED)
        assert outcome(lambda: player.mtp("chunks", IDS, (6,), True))[1] == playing.NEVER_ASKED
        assert outcome(lambda: player.lives(LIVES, {}))[1] == playing.NEVER_ASKED


def test_lives_taps_and_the_compiled_run_come_back(checkpoint, tmp_path):
    lives = told.Lives(2, 30, float("inf"), {"trim": "no trim"}, ("It broke.", "trim", True))
    served = told.Lives(1, 8, 0.5, {}, None)
    tap = {"path": "layers.0", "kind": "Layer", "array": np.ones((2, 2), np.float32)}
    slow, fast = (np.full((1, 2), value, np.float32) for value in (1, 2))
    hung = problems.Hung("It hung.")
    with recording.Recorder(Straw(None, lives, served, [tap], slow, None, fast, None, hung)) as engine:
        engine.load(checkpoint)
        engine.lives(LIVES, {})
        engine.lives(SERVED, {})
        engine.taps(IDS)
        engine.run("oneshot", IDS, (6,), False)
        with engine.compiled():
            engine.run("oneshot", IDS, (6,), False)
        with pytest.raises(problems.Hung), engine.compiled():
            raise AssertionError("it hung before")
    player = again(engine, tmp_path / "recording")
    player.load(checkpoint)
    assert player.lives(LIVES, {}) == lives
    assert player.lives(SERVED, {}).tokens == 8
    (found,) = player.taps(IDS)
    assert (found["path"], found["kind"], found["array"].tolist()) == ("layers.0", "Layer", [[1, 1], [1, 1]])
    with player.compiled():
        assert player.run("oneshot", IDS, (6,), False).tolist() == [[2, 2]]
    assert player.run("oneshot", IDS, (6,), False).tolist() == [[1, 1]]
    with pytest.raises(problems.Hung), player.compiled():
        raise AssertionError("it hung before")


def test_what_was_never_compiled_is_no_crash_and_no_verdict(checkpoint, tmp_path):
    with recording.Recorder(Straw(None)) as engine:
        engine.load(checkpoint)
    whole = family(registry()["embedding"], 0)
    cell = gate.Cell("embedding", "oneshot", Verdict.PARITY)
    cells = [cell]
    notes = confirm.confirm_compiled(again(engine, tmp_path / "recording"), whole, cells, tmp_path / "scratch")
    assert cells == [cell]
    assert notes == ["embedding under oneshot was not recorded with mx.compile at work."]


# --- probes of another version ---------------------------------------------------------------------------------------


def gaps(document):
    return {(c["mechanism"], c["schedule"]): c["sentence"] for c in document["cells"] if c["verdict"] == "coverage gap"}


def changed_recipe(probe):
    def recipe(weights):
        probe.recipe(weights)
        weights.tensors["head.weight"] = weights.tensors["head.weight"] * 2

    return replace(probe, recipe=recipe)


def test_a_probe_that_has_changed_is_a_gap(recorded, portless, monkeypatch):
    _, folder = recorded("mixes_untransposed")
    portless()
    probes = [
        changed_recipe(p) if p.mechanism == "hc.comb" else p for p in named("embedding", "hc.comb", "router.hash")
    ]
    code, document = judged(monkeypatch, folder, probes)
    wanted = {("hc.comb", s): playing.CHANGED for s in probes[0].schedules}
    wanted |= {("router.hash", s): playing.LACKS for s in probes[0].schedules}
    assert gaps(document) == wanted
    assert {cell["verdict"] for cell in document["cells"] if cell["mechanism"] == "embedding"} == {"parity"}
    assert (code, document["diagnosis"], document["layers"]) == (0, [], [])


def test_other_calls_and_other_tokens_are_a_changed_probe_too(recorded, portless, monkeypatch):
    _, folder = recorded("mixes_untransposed")
    portless()
    (probe,) = named("embedding")
    first, *rest = probe.chunks
    _, document = judged(monkeypatch, folder, [replace(probe, chunks=(first - 1, 1, *rest))])
    assert gaps(document) == {("embedding", "chunks"): playing.CHANGED}
    shorter = replace(probe, tokens=probe.tokens - rest[-1], chunks=probe.chunks[:-1])
    _, document = judged(monkeypatch, folder, [shorter])
    assert gaps(document) == {("embedding", s): playing.CHANGED for s in probe.schedules}


def test_the_family_of_names_is_known_though_the_first_probe_has_changed(recorded, portless, monkeypatch):
    names = ("embedding", "weights.fp8")
    _, folder = recorded("only_short_prefix", names)
    portless()
    _, document = judged(
        monkeypatch, folder, [changed_recipe(p) if p.mechanism == "embedding" else p for p in named(*names)]
    )
    assert {one["state"] for one in document["loading"] if one["family"] == "F3"} == {"loads"}
    assert set(gaps(document).values()) == {playing.CHANGED}
    assert {cell["verdict"] for cell in document["cells"] if cell["mechanism"] == "weights.fp8"} == {"parity"}


def test_other_libraries_are_noted(recorded, monkeypatch, tmp_path):
    _, folder = recorded("mixes_untransposed")
    changed(edit(lambda manifest: manifest["environment"]["libraries"].update(mlx="0.1")), folder, tmp_path / "copy")
    _, document = judged(monkeypatch, tmp_path / "copy", named("embedding"))
    (note,) = (note for note in document["notes"] if note.startswith("The recording was made with mlx 0.1; "))
    assert note.count("mlx") == 2


# --- what cannot be asked --------------------------------------------------------------------------------------------


def refused(capsys, *arguments):
    """The one sentence of a command that was no good, or a failure."""
    capsys.readouterr()  # of a recording that was made for this test
    assert cli.main(["gate", *map(str, arguments)]) == 2
    out, error = capsys.readouterr()
    lines = error.strip().splitlines()
    assert (out, len(lines)) == ("", 1), error
    assert lines[0].startswith("parity: ")
    assert lines[0][-1] in '.?"'
    return lines[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--seed", "1"), "made with --seed 0; leave --seed 1 away"),
        (("--profile", "full"), "made with --profile quick"),
        (("--family", "raw"), "made with --family any"),
        (("--record", "new"), "is a recording; --bundle and --record ask the port itself"),
        (("--bundle", "new"), "is a recording; --bundle and --record ask the port itself"),
    ],
)
def test_a_recording_is_judged_as_it_was_made(recorded, capsys, monkeypatch, tmp_path, options, said):
    _, folder = recorded("mixes_untransposed")
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, folder, *options)
    assert [*tmp_path.iterdir()] == []


def test_a_recording_replaces_nothing(capsys, tmp_path):
    assert "exists; give --record a folder" in refused(capsys, "dsv4_mlx", "--record", tmp_path)
    assert "cannot be made" in refused(capsys, "dsv4_mlx", "--record", tmp_path / "no" / "folder")
    both = tmp_path / "both"
    assert "a folder each" in refused(capsys, "dsv4_mlx", "--record", both, "--bundle", both)


def test_a_recording_is_written_whole_or_not_at_all(monkeypatch, tmp_path):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recording, "save", full)
    target = tmp_path / "recordings" / "new"
    target.parent.mkdir()
    _, document = judged(monkeypatch, CANDIDATES / "unchanged.py", named("embedding"), "--record", str(target))
    assert document["verdict"] == "parity"
    assert document["notes"] == [
        f"There is no recording: {target} cannot be written (No space left on device); give --record another folder."
    ]
    assert [*target.parent.iterdir()] == []


def test_an_interrupted_run_has_no_recording(monkeypatch, tmp_path):
    monkeypatch.setattr(filling.Filling, "fill", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    _, document = judged(
        monkeypatch, CANDIDATES / "unchanged.py", named("embedding"), "--record", str(tmp_path / "new")
    )
    assert (document["verdict"], (tmp_path / "new").exists()) == ("interrupted", False)
    assert "There is no recording: the run was interrupted." in document["notes"]


# --- broken and hostile recordings -----------------------------------------------------------------------------------


def changed(damage, folder, copy):
    shutil.copytree(folder, copy)
    damage(copy)
    return copy


def edit(change):
    """Damage to the manifest's content."""

    def damage(folder):
        path = folder / "recording.json"
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))

    return damage


def answers(manifest, what):
    return next(given for one in manifest["asked"] for given in one["given"] if what in given)


def rewritten(path, change):
    path.write_bytes(change(path.read_bytes()))


def arrays(change):
    """Damage to the bytes of the arrays' file."""
    return lambda folder: rewritten(folder / "arrays.safetensors", change)


def manifest(change):
    return lambda folder: rewritten(folder / "recording.json", change)


def reshaped(folder):
    """The same bytes in another shape."""
    found = load_file(folder / "arrays.safetensors")
    save_file({name: array.reshape(-1) for name, array in found.items()}, folder / "arrays.safetensors")


def halved(folder):
    found = load_file(folder / "arrays.safetensors")
    save_file({name: array.astype(np.float16) for name, array in found.items()}, folder / "arrays.safetensors")


def linked(name):
    """The file is a link to one outside."""

    def damage(folder):
        outside = folder.parent / f"outside-{name}"
        (folder / name).rename(outside)
        (folder / name).symlink_to(outside)

    return damage


def to_pipe(folder):
    (folder / "arrays.safetensors").unlink()
    os.mkfifo(folder / "arrays.safetensors")


DAMAGES = {
    "arrays are missing": (lambda folder: (folder / "arrays.safetensors").unlink(), "is missing"),
    "arrays are cut": (arrays(lambda data: data[:-100]), "is cut short"),
    "arrays have no header": (arrays(lambda data: data[:5]), "is cut short"),
    "arrays are empty": (arrays(lambda data: b""), "is empty"),
    "the header is huge": (arrays(lambda data: b"\xff" * 7 + b"\x7f" + data[8:]), "is no safetensors file"),
    "a bit flipped": (arrays(lambda data: data[:-1] + bytes([data[-1] ^ 1])), "is damaged"),
    "other shapes": (reshaped, "is damaged"),
    "other types": (halved, "is damaged"),
    "arrays are a link": (linked("arrays.safetensors"), "cannot be read as a plain file"),
    "the manifest is a link": (linked("recording.json"), "cannot be read as a plain file"),
    "arrays are a pipe": (to_pipe, "cannot be read as a plain file"),
    "no JSON": (manifest(lambda data: data[:-200]), "holds no JSON"),
    "not text": (manifest(lambda data: b"\xff\xfe" + data), "holds no JSON"),
    "nested": (manifest(lambda data: b"[" * 100_000), "holds no JSON"),
    "a list": (manifest(lambda data: b"[]"), "its schema is not"),
    "another schema": (edit(lambda m: m.update(schema="dsv4-parity/recording/9")), "its schema is not"),
    "no seed": (edit(lambda m: m.pop("seed")), "'seed' is missing"),
    "a seed that is huge": (edit(lambda m: m.update(seed=1 << 80)), "no number of a usable size"),
    "a seed that is none": (edit(lambda m: m.update(seed=True)), "no number of a usable size"),
    "NaN": (edit(lambda m: m.update(seed=float("nan"))), "holds no JSON"),
    "another profile": (edit(lambda m: m.update(profile="../quick")), "belongs"),
    "another kind": (edit(lambda m: m["candidate"].update(kind="os")), "belongs"),
    "a list for a name": (edit(lambda m: m["candidate"].update(name=["x"])), "belongs"),
    "no start": (edit(lambda m: m.update(start=[])), "is no recording"),
    "a text for questions": (edit(lambda m: m.update(asked="abc")), "belongs"),
    "an array of another file": (
        edit(lambda m: answers(m, "logits").update(logits="../../etc/passwd")),
        "lacks an array",
    ),
    "an array that is no name": (edit(lambda m: answers(m, "logits").update(logits={"a": 1})), "lacks an array"),
    "a problem of no kind": (
        edit(lambda m: m["names_tried"].append({"problem": "SystemExit", "sentence": "x"})),
        "belongs",
    ),
    "an answer of no kind": (edit(lambda m: m["asked"][0].update(do="__init__")), "belongs"),
    "an answer that is a number": (edit(lambda m: m["asked"][0].update(given=[5])), "is no recording"),
    "a checkpoint that is a list": (edit(lambda m: m["asked"][0].update(checkpoint=[[]])), "is no recording"),
    "calls that are a number": (edit(lambda m: m["asked"][0].update(of=3)), "is no recording"),
    "a source that is a number": (edit(lambda m: m["start"][0]["facts"].update(file=3)), "belongs"),
    "a line below 1": (edit(lambda m: m["start"][0]["facts"].update(line=-3)), "a line below 1"),
    "a long text": (edit(lambda m: m["candidate"].update(name="x" * 1_000_000)), "a text of 1000000 characters"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_one_sentence(recorded, capsys, tmp_path, name):
    damage, said = DAMAGES[name]
    _, folder = recorded("mixes_untransposed")
    copy = changed(damage, folder, tmp_path / "copy")
    sentence = refused(capsys, copy)
    assert said in sentence
    assert sentence.startswith(f"parity: {copy}")
    assert len(sentence) < 600
    assert "passwd" not in sentence


def test_an_undamaged_copy_is_judged(recorded, monkeypatch, tmp_path):
    live, folder = recorded("mixes_untransposed")
    copy = changed(edit(lambda manifest: None), folder, tmp_path / "copy")
    assert judged(monkeypatch, copy, named(*PROBES))[0] == live["exit_code"] == 1


def test_a_name_forges_no_line(recorded, monkeypatch, tmp_path):
    _, folder = recorded("mixes_untransposed")
    copy = changed(edit(lambda m: m["candidate"].update(name="x)\nparity \x1b[2J")), folder, tmp_path / "copy")
    _, document = judged(monkeypatch, copy, named("embedding"))
    assert document["candidate"]["name"] == f"{copy} (a recording of 'x)\\nparity \\x1b[2J')"


def test_a_folder_without_a_manifest_is_no_recording(recorded, capsys, tmp_path):
    _, folder = recorded("mixes_untransposed")
    copy = changed(lambda folder: (folder / "recording.json").unlink(), folder, tmp_path / "copy")
    assert "holds neither" in refused(capsys, copy)


# Any byte of the manifest, changed: a sentence, or a recording that can be judged.
def test_random_damage_to_the_manifest_raises_nothing_else(recorded, tmp_path):
    _, folder = recorded("mixes_untransposed")
    copy = shutil.copytree(folder, tmp_path / "copy")
    pristine = (copy / "recording.json").read_bytes()
    random, read = np.random.default_rng(0), 0
    for _ in range(100):
        data = bytearray(pristine)
        data[random.integers(len(data))] = random.integers(32, 127)
        (copy / "recording.json").write_bytes(data)
        with contextlib.suppress(BadInput):
            playing.read(copy)
            read += 1
    assert 0 < read < 100
