"""Each way in which a checkpoint folder is wrong, and its sentence.

Run: pytest tests/test_safetensors_folder.py
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dsv4_checkpoints import CheckpointError
from dsv4_checkpoints.folder import INDEX, read_names
from reference_torch.safetensors_folder import read_folder

AGAIN = "fetch or convert the checkpoint again."
A = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def write(path, header=A, data=bytes(8), length=None):
    """Write a file in the safetensors format, right or wrong: `header` is a dict or the bytes themselves."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if length is None else length
    path.write_bytes(length.to_bytes(8, "little") + text + data)


def write_index(folder, weight_map):
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 8}, "weight_map": weight_map}))


def sentence(folder) -> str:
    """Return what the reader says, which must be one line; reading and listing must say the same."""
    with pytest.raises(CheckpointError) as caught:
        read_folder(folder)
    said = str(caught.value)
    with pytest.raises(CheckpointError) as listing:
        read_names(folder)
    assert str(listing.value) == said
    assert "\n" not in said
    assert len(said) < 500 + 3 * len(str(folder))
    assert said.endswith(".")
    return said


# --- what is right -----------------------------------------------------------------------------------------

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_arrives_with_its_bytes(tmp_path, dtype):
    raw = bytes(i % 2 for i in range(6 * DTYPES[dtype].itemsize))
    write(tmp_path / "model.safetensors", {"x": entry(dtype, [2, 3], [0, len(raw)])}, raw)
    tensor = read_folder(tmp_path)["x"]
    assert tensor.dtype == DTYPES[dtype]
    assert tensor.shape == (2, 3)
    assert tensor.view(torch.uint8).numpy().tobytes() == raw
    assert read_names(tmp_path) == {"x": (dtype, (2, 3), tmp_path / "model.safetensors")}


def test_scalars_empty_tensors_odd_alignment_and_metadata(tmp_path):
    header = {
        "__metadata__": {"format": "pt"},
        "odd": entry("I8", [3], [0, 3]),
        "none": entry("F32", [0, 5], [3, 3]),
        "scalar": entry("F32", [], [3, 7]),
    }
    write(tmp_path / "model.safetensors", header, b"abc" + bytes.fromhex("0000803f"))
    tensors = read_folder(tmp_path)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "odd": (3,),
        "none": (0, 5),
        "scalar": (),
    }
    assert tensors["scalar"].item() == 1.0


def save_shards(folder, names=("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")):
    tensors = {"a": torch.arange(4.0), "b": torch.ones(2, 3, dtype=torch.bfloat16)}
    for (key, tensor), name in zip(tensors.items(), names, strict=True):
        save_file({key: tensor}, folder / name)
    return tensors, dict(zip(tensors, names, strict=True))


@pytest.mark.parametrize("indexed", [False, True])
def test_shards_with_and_without_an_index(tmp_path, indexed):
    tensors, weight_map = save_shards(tmp_path)
    if indexed:
        write_index(tmp_path, weight_map)
    read = read_folder(str(tmp_path))
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert {name: stored.path.name for name, stored in read_names(tmp_path).items()} == weight_map


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    write(tmp_path / "model.safetensors")
    (tmp_path / "vectors.safetensors").write_bytes(b"not read")
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    assert read_folder(tmp_path)["a"].tolist() == [0, 0]


def test_index_may_list_a_single_file_and_a_folder_inside(tmp_path):
    write(tmp_path / "model.safetensors")
    write_index(tmp_path, {"a": "model.safetensors"})
    assert list(read_folder(tmp_path)) == ["a"]
    (tmp_path / "inner").mkdir()
    (tmp_path / "model.safetensors").rename(tmp_path / "inner" / "part.safetensors")
    write_index(tmp_path, {"a": "inner/part.safetensors"})
    assert list(read_folder(tmp_path)) == ["a"]


def test_the_hub_cache_keeps_its_files_as_links(tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / "60d8d707", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    write(blobs / "0123abcd")
    (snapshot / "model.safetensors").symlink_to(Path("../../blobs/0123abcd"))
    write_index(snapshot, {"a": "model.safetensors"})
    assert list(read_folder(snapshot)) == ["a"]


# --- which files -------------------------------------------------------------------------------------------


def test_missing_folder(tmp_path):
    folder = tmp_path / "nowhere"
    assert sentence(folder) == f"the checkpoint folder {folder} does not exist; check the path."


def test_file_instead_of_a_folder(tmp_path):
    file = tmp_path / "model.safetensors"
    write(file)
    assert sentence(file) == f"{file} is a file; give the folder that holds the checkpoint."


def test_no_safetensors_file(tmp_path):
    expected = f"{tmp_path} holds no model.safetensors and no shards of it; give a checkpoint's folder."
    assert sentence(tmp_path) == expected


def test_only_pickle_files(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    assert sentence(tmp_path) == (
        f"{tmp_path} holds pickle files (pytorch_model.bin), "
        "which are never opened because they can run code; convert them to safetensors."
    )


def test_missing_numbered_shard(tmp_path):
    write(tmp_path / "model-00001-of-00003.safetensors")
    write(tmp_path / "model-00003-of-00003.safetensors", {"c": A["a"]})
    assert sentence(tmp_path) == f"{tmp_path} lacks the shard model-00002-of-00003.safetensors; fetch it."


@pytest.mark.parametrize("other", ["model.safetensors", "model-00001-of-00002.safetensors"])
def test_two_checkpoints_in_one_folder(tmp_path, other):
    write(tmp_path / "model-00001-of-00001.safetensors")
    write(tmp_path / other)
    assert sentence(tmp_path) == (
        f"{tmp_path} holds more than one checkpoint (model-00001-of-00001.safetensors and {other}); keep one of them."
    )


def test_same_tensor_in_two_shards(tmp_path):
    one, two = (tmp_path / f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    write(one)
    write(two)
    expected = f"tensor 'a' is in both {one} and {two}; keep it in one of them."
    assert sentence(tmp_path) == expected
    # The index names one place only, and yet the file of another has it too.
    write(two, {**A, "b": entry(offsets=[8, 16])}, bytes(16))
    write_index(tmp_path, {"a": one.name, "b": two.name})
    assert sentence(tmp_path) == expected


def test_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert sentence(tmp_path) == f"{tmp_path} cannot be listed (Permission denied); check its permissions."


@pytest.mark.parametrize("method", ["open", "stat"])
def test_file_that_cannot_be_read(tmp_path, monkeypatch, method):
    file = tmp_path / "model.safetensors"
    write(file)
    real = getattr(Path, method)

    # Permissions do not bind root, under whom tests may run.
    def refuse(self, *args, **kwargs):
        if self.name == "model.safetensors":
            raise PermissionError(13, "Permission denied")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, method, refuse)
    expected = f"{file} cannot be read (Permission denied); check its permissions."
    assert sentence(tmp_path) == expected


def test_link_to_nothing(tmp_path):
    file = tmp_path / "model.safetensors"
    file.symlink_to("gone")
    assert sentence(tmp_path) == f"{file} cannot be read (No such file or directory); check its permissions."
    file.rename(tmp_path / INDEX)
    expected = f"{tmp_path / INDEX} cannot be read (No such file or directory); check its permissions."
    assert sentence(tmp_path) == expected


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_not_a_regular_file(tmp_path, make):
    file = tmp_path / "model.safetensors"
    make(file)
    assert sentence(tmp_path) == f"{file} is not a regular file; put the safetensors file in its place."


def test_no_tensor_at_all(tmp_path):
    write(tmp_path / "model.safetensors", {}, b"")
    assert sentence(tmp_path) == f"the safetensors files in {tmp_path} hold no tensor; {AGAIN}"


def test_whatever_safetensors_itself_refuses(tmp_path):
    # Python's JSON takes a lone surrogate, the library's does not.
    file = tmp_path / "model.safetensors"
    write(file, {"\ud800": A["a"]})
    assert list(read_names(tmp_path)) == ["\ud800"]
    with pytest.raises(CheckpointError) as caught:
        read_folder(tmp_path)
    assert str(caught.value).startswith(f"{file} cannot be read by safetensors (")
    assert str(caught.value).endswith(f"); {AGAIN}")


# --- the header --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "FILE is empty; "),
        (b"abc", "FILE is cut short: it has 3 bytes and no header; "),
        (bytes(8), "the header of FILE is not JSON (Expecting value: line 1 column 1 (char 0)); "),
        (
            (50).to_bytes(8, "little") + b"{}",
            "FILE is cut short: its header takes 50 bytes, and the file has 2 after the length; ",
        ),
        (
            (100_000_001).to_bytes(8, "little") + b"{}",
            "FILE is no safetensors file: its header would take 100000001 bytes; ",
        ),
        (
            b"\xff" * 8,
            "FILE is no safetensors file: its header would take 18446744073709551615 bytes; ",
        ),
    ],
    ids=["empty", "no-length", "no-header", "header-cut", "header-too-long", "length-absurd"],
)
def test_damaged_beginning(tmp_path, content, expected):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    assert sentence(tmp_path) == expected.replace("FILE", str(file)) + AGAIN


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b'{"a" 1}', "is not JSON (Expecting ':' delimiter: line 1 column 6 (char 5)); "),
        (b"\xff{}", "is not JSON ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte); "),
        (b"[1]", "is not a JSON object but [1]; "),
        (b"null", "is not a JSON object but None; "),
        (b'{"a": {"dtype": "F32", "dtype": "I8"}}', "has the key 'dtype' twice; "),
        (b'{"a": 1, "a": 2}', "has the key 'a' twice; "),
    ],
)
def test_header_that_is_no_plain_object(tmp_path, header, expected):
    file = tmp_path / "model.safetensors"
    write(file, header)
    assert sentence(tmp_path) == f"the header of {file} {expected}{AGAIN}"


def test_header_nested_too_deep(tmp_path):
    file = tmp_path / "model.safetensors"
    write(file, b'{"a":' + b"[" * 100_000)
    assert sentence(tmp_path).startswith(f"the header of {file} is not JSON (")


@pytest.mark.parametrize("metadata", [1, {"format": 1}, ["pt"]])
def test_metadata_that_is_no_text(tmp_path, metadata):
    file = tmp_path / "model.safetensors"
    write(file, {"__metadata__": metadata, **A})
    assert sentence(tmp_path) == f"{file} has a __metadata__ that does not map text to text; {AGAIN}"


NO_SIZES = "which is no list of sizes; " + AGAIN
NO_RANGE = "which is no range; " + AGAIN


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (7, f"lacks dtype, shape or data_offsets; {AGAIN}"),
        ({"dtype": "F32", "shape": [2]}, f"lacks dtype, shape or data_offsets; {AGAIN}"),
        (entry("F7"), "has the unknown dtype 'F7'; convert it to one of BOOL, U8, I8, "),
        (entry(["F32"]), "has the unknown dtype ['F32']; convert it to one of BOOL, U8, I8, "),
        (entry(shape=[-2]), f"has the shape [-2], {NO_SIZES}"),
        (entry(shape=[-1, -2]), f"has the shape [-1, -2], {NO_SIZES}"),
        (entry(shape=[2.0]), f"has the shape [2.0], {NO_SIZES}"),
        (entry(shape=[True, 2]), f"has the shape [True, 2], {NO_SIZES}"),
        (entry(shape="2"), f"has the shape '2', {NO_SIZES}"),
        (entry(offsets=[8, 0]), f"has the data_offsets [8, 0], {NO_RANGE}"),
        (entry(offsets=[-8, 0]), f"has the data_offsets [-8, 0], {NO_RANGE}"),
        (entry(offsets=[0, 8.0]), f"has the data_offsets [0, 8.0], {NO_RANGE}"),
        (entry(offsets=[8]), f"has the data_offsets [8], {NO_RANGE}"),
        (entry(offsets=None), f"has the data_offsets None, {NO_RANGE}"),
        (
            entry(shape=[3]),
            f"is F32 of shape [3], which takes 12 bytes, but its data_offsets give it 8; {AGAIN}",
        ),
        (
            entry("BF16", [2, 1]),
            f"is BF16 of shape [2, 1], which takes 4 bytes, but its data_offsets give it 8; {AGAIN}",
        ),
        (
            entry(shape=[10**4000, 10**4000]),
            "which takes a number too large to print bytes, but its data_offsets give it 8",
        ),
    ],
)
def test_wrong_entry(tmp_path, one, expected):
    file = tmp_path / "model.safetensors"
    write(file, {"layers.0.x": one})
    said = sentence(tmp_path)
    assert said.startswith(f"tensor 'layers.0.x' in {file} ")
    assert expected in said


@pytest.mark.parametrize(
    ("second", "size", "expected"),
    [
        (entry(offsets=[4, 12]), 16, "tensors 'a' and 'b' overlap in FILE; "),
        (entry(offsets=[0, 8]), 8, "tensors 'a' and 'b' overlap in FILE; "),
        (entry(offsets=[12, 20]), 20, "FILE has 4 unused bytes before tensor 'b'; "),
        (entry(offsets=[8, 16]), 19, "FILE has 3 unused bytes after its last tensor; "),
        (
            entry(offsets=[8, 16]),
            10,
            "FILE is cut short: tensor 'b' ends at byte 16 of the data, and the file has 10; ",
        ),
        (
            entry(offsets=[10**30, 10**30 + 8]),
            16,
            f"FILE is cut short: tensor 'b' ends at byte {10**30 + 8} of the data, and the file has 16; ",
        ),
    ],
    ids=["overlap", "same-place", "hole", "rest", "truncated", "far-outside"],
)
def test_wrong_places(tmp_path, second, size, expected):
    file = tmp_path / "model.safetensors"
    write(file, {**A, "b": second}, bytes(size))
    assert sentence(tmp_path) == expected.replace("FILE", str(file)) + AGAIN


def test_long_and_unprintable_names_stay_readable(tmp_path):
    write(tmp_path / "model.safetensors", {"\x1b[31m" + "n" * 10_000: entry("F7")})
    assert "tensor '\\x1b[31mnnn" in sentence(tmp_path)


# --- the index ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is not JSON (Expecting value: line 1 column 1 (char 0)); "),
        ("[]", "is not a JSON object but []; "),
        ('{"weight_map": {"a": "x", "a": "y"}}', "has the key 'a' twice; "),
        ("{}", "has no weight_map that names a shard for each tensor; "),
        ('{"weight_map": {}}', "has no weight_map that names a shard for each tensor; "),
        ('{"weight_map": ["a"]}', "has no weight_map that names a shard for each tensor; "),
        ('{"weight_map": {"a": 1}}', "names no file for tensor 'a' but 1; "),
        ('{"weight_map": {"a": "a.bin"}}', "puts tensor 'a' in 'a.bin', which is no safetensors file; "),
        ('{"weight_map": {"a": ""}}', "puts tensor 'a' in '', which is no safetensors file; "),
        (
            '{"weight_map": {"a": "\\u0000.safetensors"}}',
            "names '\\x00.safetensors', which is no usable path; ",
        ),
    ],
)
def test_index_that_makes_no_sense(tmp_path, text, expected):
    (tmp_path / INDEX).write_text(text)
    assert sentence(tmp_path) == f"{tmp_path / INDEX} {expected}{AGAIN}"


def test_index_that_cannot_be_read(tmp_path, monkeypatch):
    write_index(tmp_path, {"a": "model.safetensors"})

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    expected = f"{tmp_path / INDEX} cannot be read (Permission denied); check its permissions."
    assert sentence(tmp_path) == expected


def test_index_names_a_shard_that_does_not_exist(tmp_path):
    write_index(tmp_path, {"a": "model-00001-of-00001.safetensors"})
    assert sentence(tmp_path) == (
        f"{tmp_path / INDEX} names the shard 'model-00001-of-00001.safetensors', which is not in the folder; fetch it."
    )


@pytest.mark.parametrize("shard", ["../x.safetensors", "inner/../../x.safetensors", "ABSOLUTE", "link.safetensors"])
@pytest.mark.parametrize("exists", [True, False])
def test_index_points_outside_the_folder(tmp_path, shard, exists):
    folder, outside = tmp_path / "checkpoint", tmp_path / "x.safetensors"
    (folder / "inner").mkdir(parents=True)
    if exists:
        write(outside)
    (folder / "link.safetensors").symlink_to(outside)
    shard = shard.replace("ABSOLUTE", str(outside))
    write_index(folder, {"a": shard})
    said = sentence(folder)
    assert said.startswith(f"{folder / INDEX} puts tensor 'a' in '{shard[:60]}")
    assert said.endswith(
        "', which is outside the folder; do not trust this checkpoint, or copy the file into the folder."
    )


def test_links_in_a_circle(tmp_path):
    (tmp_path / "x.safetensors").symlink_to("x.safetensors")
    write_index(tmp_path, {"a": "x.safetensors"})
    assert sentence(tmp_path) == f"{tmp_path / INDEX} names 'x.safetensors', which is no usable path; {AGAIN}"


def test_index_lists_a_tensor_that_its_shard_lacks(tmp_path):
    write(tmp_path / "model.safetensors")
    write_index(tmp_path, {"a": "model.safetensors", "b": "model.safetensors"})
    expected = f"{tmp_path / INDEX} puts tensor 'b' in model.safetensors, but it is not there; {AGAIN}"
    assert sentence(tmp_path) == expected


def test_index_lists_a_tensor_in_the_wrong_shard(tmp_path):
    _, weight_map = save_shards(tmp_path)
    write_index(tmp_path, {"a": weight_map["b"], "b": weight_map["a"]})
    assert sentence(tmp_path) == (
        f"{tmp_path / INDEX} puts tensor 'a' in {weight_map['b']}, but it is in {tmp_path / weight_map['a']}; {AGAIN}"
    )


def test_shard_holds_a_tensor_that_the_index_does_not_list(tmp_path):
    file = tmp_path / "model.safetensors"
    write(file, {**A, "b": entry(offsets=[8, 16])}, bytes(16))
    write_index(tmp_path, {"a": "model.safetensors"})
    assert sentence(tmp_path) == f"{file} holds tensor 'b', which {INDEX} does not list; {AGAIN}"


def test_file_that_the_index_does_not_list(tmp_path):
    _, weight_map = save_shards(tmp_path)
    write_index(tmp_path, weight_map)
    write(tmp_path / "model.safetensors")
    assert sentence(tmp_path) == (
        f"{tmp_path / 'model.safetensors'} is not listed in {INDEX}; remove the file or the index."
    )
