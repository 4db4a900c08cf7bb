"""What CANDIDATE may be, and that each kind is driven to the logits that its model gives in this process.

Run: pytest tests/test_adapters.py
"""

import importlib.util
import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from helpers import sentence, tiny, token_ids, write_folder

import dsv4_mlx
from parity.candidates.adapters import Target, resolve
from parity.candidates.adapters.imports import missing_modules
from parity.candidates.adapters.stored import all_float32
from parity.candidates.pip_names import with_pip_names
from parity.candidates.process import MissingImports, NotOffered, Process, Raised
from parity.cases.resources import fixtures_path
from parity.cases.strategies import checkpoint_tensors
from parity.environment import installed_version
from parity.errors import BadInput

CONFIG = tiny((0, 4), mtp=0)
WITH_MTP = tiny((0, 4, 0), mtp=1)
IDS = token_ids(CONFIG, 9)
PORT = "from dsv4_mlx import Model, ModelArgs\n"


def folder_of(tmp_path, config=CONFIG):
    return write_folder(tmp_path / "checkpoint", config, checkpoint_tensors(config, 0, "float32"))


def tree(root, package, whole=True):
    """A folder that looks like a checkout of mlx-lm or mlx-vlm."""
    models = root / package / "models"
    models.mkdir(parents=True)
    (models / "deepseek_v4.py").write_text(PORT)
    if whole:
        for name in ("__init__.py", "utils.py", "models/base.py"):
            (root / package / name).write_text("")
    return root


# --- resolve -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["dsv4_mlx", "hf"])
def test_words(word):
    assert resolve(word) == Target(word, kind=word)


def test_a_lone_file(tmp_path):
    file = tmp_path / "port.py"
    file.write_text(PORT)
    assert resolve(str(file)) == Target(str(file), "model_file", path=str(file))


@pytest.mark.parametrize("package", ["mlx_lm", "mlx_vlm"])
def test_a_checkout_and_every_folder_in_it(tmp_path, package):
    root = tree(tmp_path, package)
    for text in (root, root / package, root / package / "models"):
        found = resolve(str(text))
        assert found == Target(str(text), package, f"{package}.models.deepseek_v4", str(root))


def test_a_file_in_a_checkout_belongs_to_it(tmp_path):
    file = tree(tmp_path, "mlx_lm") / "mlx_lm" / "models" / "deepseek_v4.py"
    assert resolve(str(file)) == Target(str(file), "mlx_lm", "mlx_lm.models.deepseek_v4", str(tmp_path), str(file))


def test_a_file_of_a_partial_tree_stands_alone(tmp_path):
    file = tree(tmp_path, "mlx_lm", whole=False) / "mlx_lm" / "models" / "deepseek_v4.py"
    assert resolve(str(file)).kind == "model_file"


def package(root, *folders, without=()):
    """A file in packages within each other; no __init__.py in the folders `without`."""
    for depth in range(len(folders)):
        folder = root.joinpath(*folders[: depth + 1])
        folder.mkdir(parents=True, exist_ok=True)
        if folders[depth] not in without:
            (folder / "__init__.py").write_text("")
    (folder / "deepseek_v4.py").write_text(PORT)
    return folder / "deepseek_v4.py"


@pytest.mark.parametrize("without", [(), ("models",)])
def test_a_file_in_a_package_of_its_own_belongs_to_it(tmp_path, without):
    file = package(tmp_path, "a_port", "models", without=without)
    expected = Target(str(file), "module", "a_port.models.deepseek_v4", str(tmp_path), str(file))
    assert resolve(str(file)) == expected
    assert resolve(str(file.parents[1] / "__init__.py")).module == "a_port"


def test_a_file_is_alone_where_no_name_leads_to_it(tmp_path):
    for folders, without in [(("a_port", "models"), ("a_port", "models")), (("a.port",), ()), (("a", "b", "c"), "bc")]:
        assert resolve(str(package(tmp_path, *folders, without=without))).kind == "model_file"


def test_dotted_modules_are_found_and_not_imported(tmp_path, monkeypatch):
    (tmp_path / "some_port").mkdir()
    (tmp_path / "some_port" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "some_port" / "model.py").write_text(PORT)
    monkeypatch.chdir(tmp_path)  # like `python -m`: what lies in the working folder counts
    found = resolve("some_port.model")
    assert found == Target("some_port.model", "module", "some_port.model", str(tmp_path))
    assert Target(**json.loads(json.dumps(found.as_json()))) == found
    assert resolve("mlx_lm.models.deepseek_v3").kind == "mlx_lm"


def test_what_cannot_be_found_is_one_sentence(tmp_path):
    assert "There is no file or folder nowhere/port.py;" in sentence(BadInput, resolve, "nowhere/port.py")
    assert "holds neither mlx_lm/models/deepseek_v4 nor" in sentence(BadInput, resolve, str(tmp_path))
    assert "did you mean 'dsv4_mlx'? " in sentence(BadInput, resolve, "dsv4_mxl")
    assert "is installed but has no module mlx_lm.models.nothing" in sentence(
        BadInput, resolve, "mlx_lm.models.nothing"
    )
    assert "names no candidate" in sentence(BadInput, resolve, "not a name")
    text = tmp_path / "notes.txt"
    text.write_text("")
    assert "is no Python file" in sentence(BadInput, resolve, str(text))


def test_a_tree_without_the_model_is_refused(tmp_path):
    (tree(tmp_path, "mlx_lm") / "mlx_lm" / "models" / "deepseek_v4.py").unlink()
    assert "holds neither" in sentence(BadInput, resolve, str(tmp_path))


# --- each kind is driven -------------------------------------------------------------------------------------


def judged(text, tmp_path, config=CONFIG, ids=IDS):
    """Facts, one-shot logits and cached logits of a candidate."""
    with Process(resolve(str(text)), tmp_path, timeout=120, memory=8) as process:
        process.load(folder_of(tmp_path, config))
        one_shot = process.run("one shot", ids, [ids.shape[1]], cached=False)
        chunks = process.run("chunks", ids, [4, 1, ids.shape[1] - 5], cached=True)
        return process.facts, one_shot, chunks


def own(tmp_path, config=CONFIG, ids=IDS):
    """dsv4_mlx's logits in this process: one shot, in chunks."""
    model = dsv4_mlx.load(folder_of(tmp_path, config), mx.float32)
    cache, tokens = model.make_cache(), mx.array(ids.numpy())
    pieces = [np.array(model(piece, cache)) for piece in mx.split(tokens, [4, 5], axis=1)]
    return np.array(model(tokens)), np.concatenate(pieces, axis=1)


def same(got, expected):
    return all(np.array_equal(one, other) for one, other in zip(got, expected, strict=True))


def test_dsv4_mlx(tmp_path):
    facts, *logits = judged("dsv4_mlx", tmp_path)
    assert same(logits, own(tmp_path))
    assert (facts["kind"], facts["mtp"], facts["taps"]) == ("dsv4_mlx", True, "mlx")
    assert facts["class"] == "dsv4_mlx.model.Model"
    assert Path(facts["file"]).read_text().splitlines()[facts["line"] - 1].startswith("class Model")
    assert facts["versions"]["mlx"] == installed_version("mlx")
    assert not {"transformers", "torch"} & facts["versions"].keys()  # two seconds a start, for nothing


def test_a_lone_file_is_driven_by_mlx_lms_loader(tmp_path):
    file = tmp_path / "port.py"
    file.write_text("from .base import BaseModelArgs\n" + PORT)  # a relative import means the installed mlx-lm
    facts, *logits = judged(file, tmp_path)
    assert same(logits, own(tmp_path))
    assert {"mlx-lm", "mlx"} <= facts["versions"].keys()


def test_a_partial_tree_prefers_its_own_files(tmp_path):
    models = tree(tmp_path / "pull", "mlx_lm", whole=False) / "mlx_lm" / "models"
    for folder in (models, tmp_path):
        (folder / "mla.py").write_text("MINE = True\n")
        (folder / "deepseek_v4.py").write_text("from .mla import MINE\n" + PORT)
    with Process(resolve(str(models / "deepseek_v4.py")), tmp_path, timeout=60, memory=8) as process:
        assert process.facts["kind"] == "model_file"
    # Beside a lone file may lie anything: mlx-lm's own files come first, and here they lack what is imported.
    with pytest.raises(MissingImports) as caught:
        Process(resolve(str(tmp_path / "deepseek_v4.py")), tmp_path, timeout=60, memory=8).__enter__()
    assert caught.value.names == ["mlx_lm.models.mla.MINE"]


def test_a_checkout_of_mlx_lm(tmp_path):
    installed = Path(importlib.util.find_spec("mlx_lm").submodule_search_locations[0])
    root = tmp_path / "checkout"
    shutil.copytree(installed, root / "mlx_lm", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "mlx_lm" / "_version.py").write_text('__version__ = "0.0.checkout"\n')
    (root / "mlx_lm" / "models" / "deepseek_v4.py").write_text("from .base import BaseModelArgs\n" + PORT)
    facts, *logits = judged(root, tmp_path)
    assert same(logits, own(tmp_path))
    assert facts["kind"] == "mlx_lm"
    assert facts["versions"]["mlx-lm"] == "0.0.checkout"


def test_a_file_in_a_package_is_driven_as_part_of_it(tmp_path, monkeypatch):
    for name, mine in (("mine", True), ("installed", False)):  # of one name: the file that was named is the port
        file = package(tmp_path / name, "a_port", "models", without=("models",))
        (file.parents[1] / "helper.py").write_text(f"MINE = {mine}\n")
        file.write_text(f"from ..helper import MINE\nassert MINE\n{PORT}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "installed"))
    facts, *logits = judged(tmp_path / "mine" / "a_port" / "models" / "deepseek_v4.py", tmp_path)
    assert same(logits, own(tmp_path))
    assert facts["kind"] == "module"


def test_a_package_that_another_one_hides_is_not_judged_in_its_place(tmp_path):
    file = package(tmp_path, "numpy").rename(tmp_path / "numpy" / "linalg.py")  # what drives a port uses the other one
    said = sentence(Raised, Process(resolve(str(file)), tmp_path, timeout=60, memory=8).__enter__)
    assert "numpy.linalg is " in said
    assert "which is not the file that was named" in said


def test_a_dotted_module(tmp_path, monkeypatch):
    (tmp_path / "other_port.py").write_text(PORT)
    monkeypatch.chdir(tmp_path)
    _, *logits = judged("other_port", tmp_path)
    assert same(logits, own(tmp_path))


def test_hugging_face(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the witness comes with the extra [test]")
    transformers.utils.logging.disable_progress_bar()
    config = tiny((0, 4, 128), head_dim=32, max_position_embeddings=1024)
    with Process(resolve("hf"), tmp_path, timeout=120, memory=8) as process:
        process.load(folder_of(tmp_path, config))
        facts, logits = process.facts, [process.run("", IDS, calls, len(calls) > 1) for calls in ([9], [4, 1, 4])]
        taps = {tap["path"]: tap["array"] for tap in process.taps(IDS)}
    assert np.array_equal(taps["lm_head"], logits[0])
    assert "model.layers.1.self_attn" in taps
    model = transformers.DeepseekV4ForCausalLM.from_pretrained(folder_of(tmp_path, config), dtype=torch.float32)
    with torch.no_grad():
        assert np.array_equal(logits[0], model.eval()(IDS, use_cache=False).logits.numpy())
    # Not how right it is, which probes judge: whether the adapter gives this model's logits, in this order of tokens.
    # Other rounding moves them by 1e-6 of their size, another token or checkpoint by all of it.
    assert np.allclose(logits[0], own(tmp_path, config)[0], atol=1e-4 * np.abs(logits[0]).max())
    assert np.allclose(*logits, atol=1e-4 * np.abs(logits[0]).max())
    assert (facts["kind"], facts["mtp"], facts["taps"]) == ("hf", False, "torch")
    assert facts["versions"].keys() == {"transformers", "torch"}


# --- MTP and taps --------------------------------------------------------------------------------------------


def test_mtp_logits(tmp_path):
    folder = folder_of(tmp_path, WITH_MTP)
    model, ids = dsv4_mlx.load(folder, mx.float32), mx.array(IDS.numpy())
    expected = np.array(model.mtp_logits(model.streams(ids[:, :-1]), ids[:, 1:]))
    with Process(resolve("dsv4_mlx"), tmp_path, timeout=60, memory=8) as process:
        process.load(folder)
        assert np.array_equal(process.mtp("one shot", IDS, [8], cached=False), expected)
        chunks = process.mtp("chunks", IDS, [3, 1, 4], cached=True)
    # Calls of other sizes round otherwise, by 1e-6 of the size; the wrong token or cache is off by all of it.
    assert np.allclose(chunks, expected, atol=1e-5 * np.abs(expected).max())


def test_mtp_that_is_not_offered_is_a_gap(tmp_path):
    (tmp_path / "port.py").write_text(PORT)
    with Process(resolve(str(tmp_path / "port.py")), tmp_path, timeout=60, memory=8) as process:
        process.load(folder_of(tmp_path))
        said = sentence(NotOffered, process.mtp, "one shot", IDS, [8], False)
    assert said == "The candidate offers no logits of its MTP block."


def test_taps_are_the_outputs_of_every_module(tmp_path):
    folder = folder_of(tmp_path)
    with Process(resolve("dsv4_mlx"), tmp_path, timeout=60, memory=8) as process:
        process.load(folder)
        taps = process.taps(IDS)
        logits = process.run("one shot", IDS, [9], cached=False)
    model = dsv4_mlx.load(folder, mx.float32)
    streams = np.array(model.streams(mx.array(IDS.numpy())))
    found = {tap["path"]: tap for tap in taps}
    assert list(found)[:1] == ["embed"]
    assert np.array_equal(found["layers.1"]["array"], streams)
    assert found["layers.1"]["kind"] == "Block"
    assert np.array_equal(found["head"]["array"], logits)
    assert {"layers.0.attn", "layers.1.attn.compressor", "layers.1.ffn.gate", "hc_head"} <= found.keys()


def test_further_outputs_of_a_module_have_taps_of_their_own(tmp_path):
    (tmp_path / "port.py").write_text(
        "from dsv4_mlx import Model as Base, ModelArgs\n"
        "class Model(Base):\n"
        "    def __call__(self, ids, cache=None):\n"
        "        logits = super().__call__(ids, cache)\n"
        "        return logits, ids, logits * 2\n"
    )
    with Process(resolve(str(tmp_path / "port.py")), tmp_path, timeout=60, memory=8) as process:
        process.load(folder_of(tmp_path))
        taps = process.taps(IDS)
    assert [tap["path"] for tap in taps[-2:]] == ["", "#2"]
    assert np.array_equal(taps[-1]["array"], 2 * taps[-2]["array"])


# --- what a checkpoint stores, what a port lacks -------------------------------------------------------------


def test_float32_checkpoints_are_recognised(tmp_path):
    assert all_float32(folder_of(tmp_path))
    tensors = checkpoint_tensors(CONFIG, 0, "float32")
    mixed = tensors | {"norm.weight": tensors["norm.weight"].bfloat16()}
    assert not all_float32(write_folder(tmp_path / "mixed", CONFIG, mixed))
    assert not all_float32(fixtures_path() / "golden" / "flash_packed_exact")


def test_missing_modules_are_those_that_run_on_import(tmp_path, monkeypatch):
    package = tmp_path / "a_port"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("import lacking_one\nfrom .helper import x\n")
    (package / "helper.py").write_text("import json, lacking_two.part\nif True:\n    import lacking_three\n")
    (package / "unused.py").write_text("import lacking_not_asked_for\n")
    (package / "models" / "model.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "from ..helper import x\n"
        "if TYPE_CHECKING:\n    import lacking_types\n"
        "try:\n    import lacking_guarded\nexcept ImportError:\n    pass\n"
        "def later():\n    import lacking_later\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert missing_modules("a_port.models.model", []) == ["lacking_one", "lacking_three", "lacking_two"]


def test_all_that_a_package_lacks_is_one_sentence_with_pips_names(tmp_path):
    file = package(tmp_path, "a_port", "models", without=("models",))
    (tmp_path / "a_port" / "__init__.py").write_text("import lacking_one\n")
    (tmp_path / "a_port" / "helper.py").write_text("from google.lacking_two.part import x\nimport json\n")
    file.write_text("from ..helper import x\nimport lacking_one.part\n" + PORT)
    said = sentence(MissingImports, Process(resolve(str(file)), tmp_path, timeout=60, memory=8).__enter__)
    assert said == "The candidate imports what is not installed: google.lacking_two, lacking_one."


def test_pips_names(monkeypatch):
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {"mlx_lm": ["mlx-lm"], "yaml": ["PyYAML"]})
    assert with_pip_names(["google.protobuf", "PIL", "lacking_one"]) == (
        "google.protobuf (pip: protobuf), PIL (pip: Pillow), lacking_one"
    )
    version = installed_version("mlx-lm")
    assert with_pip_names(["mlx_lm.models.x", "other.x", "yaml", "mlx_vlm"]) == (
        f"mlx_lm.models.x (the installed mlx-lm {version} lacks it), other.x, yaml, mlx_vlm (pip: mlx-vlm)"
    )


def test_libraries_that_are_missed_later_than_at_the_import_are_named_too(tmp_path):
    (tmp_path / "port.py").write_text(
        "from dsv4_mlx import Model as Base, ModelArgs\n"
        "class Model(Base):\n"
        "    def sanitize(self, weights):\n"
        "        raise ImportError('This needs accelerate (`pip install accelerate`)')\n"
    )
    with (
        Process(resolve(str(tmp_path / "port.py")), tmp_path, timeout=60, memory=8) as process,
        pytest.raises(MissingImports) as caught,
    ):
        process.load(folder_of(tmp_path))
    assert caught.value.names == ["accelerate"]
