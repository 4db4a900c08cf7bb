"""Damaged checkpoints of every family: refused in one sentence that names what is wrong, or read as if undamaged.

Run: pytest tests/test_checkpoint_damage.py; more places of each kind with -m slow
"""

import contextlib
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import damage_to_files  # noqa: F401 - fills KINDS
import damage_to_meaning  # noqa: F401
import mlx.core as mx
import numpy as np
import pytest
import torch
from damage import HARMLESS, KINDS, REFUSED, VALUES, Checkpoint, Known, packings, tensors_in, write
from helpers import sentence
from mlx.utils import tree_flatten

import dsv4_mlx
import reference_torch
from dsv4_mlx.conversion import convert
from parity.cases.resources import fixtures_path
from parity.jobs.fixture import VARIANTS, write_fixture

PUBLISHED = json.loads((fixtures_path() / "configs" / "flash.json").read_text())
OURS = (dsv4_mlx.UsageError,)
REFERENCE = (reference_torch.CheckpointError, reference_torch.ConfigError)
SECONDS = 20  # none takes one


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def values_of_mlx(model):
    """Every parameter's type, shape and bits, and how each layer uses them."""
    found = {}
    for path, value in tree_flatten(model.parameters()):
        bits = np.array(mx.contiguous(value).flatten().view(mx.uint8))
        found[path] = (str(value.dtype), value.shape, digest(bits.tobytes()))
    for path, module in model.named_modules():
        found[path] = tuple(module.get(name) or getattr(module, name, None) for name in ("mode", "bits", "stored"))
    return found


def values_of_torch(model):
    found = {}
    for path, value in model.named_parameters():
        bits = value.detach().contiguous().flatten().view(dtype=torch.uint8).numpy()
        found[path] = (str(value.dtype), tuple(value.shape), digest(bits.tobytes()))
    return found


def quietly(folder, target):
    return convert(folder, target, progress=lambda text: None)


class Pristine:
    """A checkpoint of a variant, and what is read of it and of its conversion."""

    def __init__(self, folder, variant):
        self.folder = write_fixture(folder / "checkpoint", PUBLISHED, variant, "tiny", 3, True)
        self.known = Known(self.folder)
        self.mlx = values_of_mlx(dsv4_mlx.load(self.folder))
        self.torch = values_of_torch(reference_torch.load(self.folder))
        self.converted = values_of_mlx(dsv4_mlx.load(quietly(self.folder, folder / "converted")))


@pytest.fixture(scope="session")
def pristine(tmp_path_factory):
    made = {}

    def of(variant):
        if variant not in made:
            made[variant] = Pristine(tmp_path_factory.mktemp(variant), variant)
        return made[variant]

    return of


class Hangs(BaseException):
    """What no reader can take for a file's fault."""


@pytest.fixture(autouse=True)
def _never_hangs():
    def stop(*_):
        raise Hangs

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def answer(call, errors, words):
    """What a call returns; None where it refuses, as it must: by its own error, one sentence with one of the words."""
    try:
        return call()
    except errors as error:
        refusal = error
    said = str(refusal)
    assert type(refusal) in errors
    assert said.isprintable()  # which a line break is not
    assert said.endswith((".", "?"))
    assert len(said) < 1500
    assert any(word in said for word in words), said
    return None


def examine(whole, folder, outcome, words):
    """The two loads and the conversion of a damaged folder."""
    around = folder.parent
    before = sorted(around.iterdir())
    for load, errors, values, expected in (
        (dsv4_mlx.load, OURS, values_of_mlx, whole.mlx),
        (reference_torch.load, REFERENCE, values_of_torch, whole.torch),
    ):
        model = answer(lambda load=load: load(folder), errors, words)
        if model is not None:
            assert outcome == HARMLESS, f"{load.__module__} loads it"
            assert values(model) == expected, f"{load.__module__} loads other values"
    target = around / "target"
    if answer(lambda: quietly(folder, target), OURS, words) is None:
        assert sorted(around.iterdir()) == before
        return
    assert outcome != REFUSED, "it is converted"
    if outcome == VALUES:
        sentence(dsv4_mlx.UsageError, dsv4_mlx.load, target)
        sentence(reference_torch.CheckpointError, reference_torch.load, target)
    else:
        assert values_of_mlx(dsv4_mlx.load(target)) == whole.converted, "other values are converted"


def damaged(whole, around, variant, name, seed):
    """A damaged copy, what must come of it, and a word of which any refusal must have one."""
    damage, outcome, _ = KINDS[name]
    folder = around / "damaged"
    shutil.copytree(whole.folder, folder)
    chance = random.Random(zlib.crc32(f"{name} {variant} {seed}".encode()))
    return folder, outcome, damage(Checkpoint(folder, chance, whole.known))


# What looks at no tensor is the same in every variant: three unlike ones are enough by default. For the rest, one of
# each family and of each way to lay out numbers; the variants beside these differ from one of them in bits alone.
ALIKE = {
    *("cut_short", "cut_json", "empty", "something_else_in_its_place", "too_long", "shard_missing"),
    *("header_length_lies", "key_twice", "config_value_that_is_none", "config_that_is_no_object"),
    *("unknown_config_key", "bits_that_are_none", "quantization_that_is_no_object"),
}
ONCE = ("F1", "F2", "F8")
UNLIKE = ("F1", "F1-base", "F2", "F2-2bit-DQ", "F2-mxfp4", "F2-3d", "F3", "F4", "F5", "F8")
CASES = [
    pytest.param(
        variant,
        name,
        id=f"{variant}-{name}",
        marks=[] if variant in (ONCE if name in ALIKE else UNLIKE) else [pytest.mark.slow],
    )
    for name, (_, _, needs) in KINDS.items()
    for variant in VARIANTS
    if not needs or packings(variant) & set(needs)
]


@pytest.mark.parametrize(("variant", "name"), CASES)
def test_damage(tmp_path, pristine, variant, name):
    whole = pristine(variant)
    examine(whole, *damaged(whole, tmp_path, variant, name, 0))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize(("variant", "name"), CASES)
def test_more_damage(tmp_path, pristine, variant, name, seed):
    whole = pristine(variant)
    examine(whole, *damaged(whole, tmp_path, variant, name, seed))


def test_there_are_enough():
    assert len([case for case in CASES if not case.marks]) >= 200
    assert KINDS.keys() >= ALIKE
    assert {case.values[0] for case in CASES} == set(VARIANTS)


@pytest.mark.parametrize(
    ("variant", "outcome"),
    [
        ("F2", REFUSED),
        ("F1", VALUES),
        *(pytest.param(one, HARMLESS, marks=[] if one in UNLIKE else [pytest.mark.slow]) for one in VARIANTS),
    ],
)
def test_one_finite_weight_that_differs_is_seen(tmp_path, pristine, variant, outcome):
    """The judge of these tests: no reader can refuse this, and the judge must."""
    whole = pristine(variant)
    folder = tmp_path / "damaged"
    shutil.copytree(whole.folder, folder)
    one = Checkpoint(folder, random.Random(variant), whole.known)
    path, tensors, name = one.choose(lambda name, tensor: tensor.dtype in ("BF16", "F32"))
    tensors[name] = tensors[name]._replace(data=bytes([tensors[name].data[0] ^ 1]) + tensors[name].data[1:])
    write(path, tensors)
    with pytest.raises(AssertionError, match="loads other values" if outcome == HARMLESS else "loads it"):
        examine(whole, folder, outcome, one.names[name])
    assert tensors_in(path)[name] == tensors[name]


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("x."), ValueError("x."), dsv4_mlx.UsageError("x")])
def test_other_errors_and_half_sentences_are_seen(error):
    def call():
        raise error

    with pytest.raises((type(error), AssertionError)):
        answer(call, OURS, {"x"})


# --- files that the system refuses to read or to write ----------------------------------------------------------

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def refuses(real, wanted, error):
    def call(path, *args, **kwargs):
        if wanted(Path(path)):
            raise error
        return real(path, *args, **kwargs)

    return call


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "model-00002-of-00003.safetensors"])
@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.EMFILE, errno.ESTALE])
def test_a_file_that_cannot_be_read(pristine, tmp_path, monkeypatch, name, error):
    """Permissions do not bind root, under whom tests may run."""
    whole = pristine("F2")
    refused = OSError(error, os.strerror(error))
    for owner, attribute in ((Path, "open"), (Path, "read_bytes"), (Path, "read_text"), (os, "open")):
        wanted = lambda path: path.name == name  # noqa: E731
        monkeypatch.setattr(owner, attribute, refuses(getattr(owner, attribute), wanted, refused))
    folder = tmp_path / "damaged"
    folder.symlink_to(whole.folder)
    examine(whole, folder, REFUSED, {name})


@pytest.mark.parametrize("variant", ["F1", "F2", *(pytest.param(one, marks=pytest.mark.slow) for one in ("F5", "F8"))])
def test_a_file_that_is_cut_while_it_is_read(variant):
    """MLX reads late: what it says then is a RuntimeError.

    In a process of its own: after reads that failed, MLX 0.32 raises their errors in later calls, or waits for ever.
    """
    command = [sys.executable, "-c", f"import test_checkpoint_damage as t; t.cut_while_it_is_read({variant!r})"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "4 answers\n"), done.stderr[-2000:]


def cut_while_it_is_read(variant):
    """Load and convert, where a file loses its half between its header and its data."""
    load, answers = mx.load, []

    def cut(path):
        found = load(path)
        os.truncate(path, os.path.getsize(path) // 2)
        return found

    with tempfile.TemporaryDirectory() as scratch:
        whole, folder, target = (
            Pristine(Path(scratch, "whole"), variant),
            Path(scratch, "damaged"),
            Path(scratch, "target"),
        )
        for twin in (False, True):
            for work in (lambda: dsv4_mlx.load(folder), lambda: quietly(folder, target)):
                shutil.copytree(whole.folder, folder)
                if twin:  # compared before the rest is read
                    one = Checkpoint(folder, random.Random(0), whole.known)
                    for path in one.shards:
                        one.shard, tensors = path, tensors_in(path)
                        name = list(tensors)[-1]
                        one.add(f"language_model.{name}", tensors[name])
                mx.load = cut
                answers.append(answer(work, OURS, {str(folder)}))
                mx.load = load
                shutil.rmtree(folder)
        left = {path.name for path in Path(scratch).iterdir()}
    if any(answers) or left != {"whole"}:
        sys.exit(f"{answers}, {left}")
    print(f"{len(answers)} answers")


def _short(path, arrays, metadata=None):
    SAVE(path, arrays, metadata=metadata)
    os.truncate(path, os.path.getsize(path) * 2 // 3)


def _raises(error):
    def save(path, arrays, metadata=None):
        Path(path).write_bytes(b"half")
        raise error

    return save


SAVE = mx.save_safetensors
DISKS = {
    "MLX refuses": (mx, "save_safetensors", _raises(RuntimeError("[save_safetensors] Failed to write.\nerrno 28"))),
    "MLX raises": (mx, "save_safetensors", _raises(FULL)),
    "MLX says nothing": (mx, "save_safetensors", _short),
    "no place for JSON": (Path, "write_text", refuses(Path.write_text, lambda path: True, FULL)),
    "no place for the tokenizer": (shutil, "copyfile", refuses(shutil.copyfile, lambda path: True, FULL)),
    "no place for a name": (Path, "rename", refuses(Path.rename, lambda path: True, FULL)),
    "no place for a folder": (Path, "mkdir", refuses(Path.mkdir, lambda path: True, FULL)),
    "an error without words": (mx, "save_safetensors", _raises(OSError("gone"))),
}


@pytest.mark.parametrize("disk", DISKS)
@pytest.mark.parametrize("variant", ["F1", "F2", "F3", "F8"])
def test_a_full_disk(pristine, tmp_path, monkeypatch, variant, disk):
    folder, target = pristine(variant).folder, tmp_path / "target"
    with monkeypatch.context() as patch:
        patch.setattr(*DISKS[disk])
        assert answer(lambda: quietly(folder, target), OURS, {str(target)}) is None
    assert list(tmp_path.iterdir()) == []
    with contextlib.suppress(FileNotFoundError):
        assert not list(folder.parent.glob(".*"))
