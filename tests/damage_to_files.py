"""Damage to files, headers, names and the index."""

import json
import os
import shutil
import struct

from damage import HARMLESS, REFUSED, Tensor, kind, parse, put, tensors_in, write

from dsv4_checkpoints import FAMILIES
from dsv4_checkpoints.family import plain

# --- files -----------------------------------------------------------------------------------------------------


@kind(REFUSED)
def cut_short(one):
    size = one.shard.stat().st_size
    os.truncate(one.shard, one.random.choice([size - 1, one.random.randrange(1, size), one.random.randrange(1, 200)]))
    return {one.shard.name}


@kind(REFUSED)
def cut_json(one):
    path = one.random.choice([one.index, one.config])
    os.truncate(path, one.random.randrange(path.stat().st_size - 2))
    return {path.name}


@kind(REFUSED)
def empty(one):
    path = one.any_file()
    path.write_bytes(b"")
    return {path.name}


@kind(REFUSED)
def something_else_in_its_place(one):
    path = one.any_file()
    path.unlink()
    one.random.choice([os.mkfifo, os.mkdir])(path)
    return {path.name}


@kind(REFUSED)
def too_long(one):
    with one.shard.open("ab") as file:
        file.write(bytes(one.random.randrange(1, 100)))
    return {one.shard.name}


@kind(REFUSED)
def shard_missing(one):
    one.shard.unlink()
    if one.random.random() < 0.5:
        one.index.unlink()
    return {one.shard.name}


# --- headers ---------------------------------------------------------------------------------------------------


@kind(REFUSED)
def header_length_lies(one):
    header, data = parse(one.shard.read_bytes())
    right = len(json.dumps(header))
    wrong = [0, 1, right - 1, right + one.random.randrange(1, 999), 2**63, 2**64 - 1, 100_000_001, right + len(data)]
    put(one.shard, header, data, one.random.choice(wrong))
    return {one.shard.name}


@kind(HARMLESS)
def one_byte_of_the_header_differs(one):
    content = bytearray(one.shard.read_bytes())
    size = struct.unpack("<Q", content[:8])[0]
    content[8 + one.random.randrange(size)] = one.random.randrange(256)
    names = {name for tensor in tensors_in(one.shard) for name in one.names[tensor]}
    one.shard.write_bytes(content)
    return names | {one.shard.name}


@kind(REFUSED)
def offsets_lie(one):
    header, data = parse(one.shard.read_bytes())
    entry = header[one.random.choice(sorted(header.keys() - {"__metadata__"}))]
    entry["data_offsets"][one.random.randrange(2)] += one.random.choice([-1, 1]) * one.random.choice([1, 8, 10**6])
    put(one.shard, header, data)
    return {one.shard.name}


@kind(REFUSED)
def offsets_of_another(one):
    header, data = parse(one.shard.read_bytes())
    first, second = one.random.sample(sorted(header.keys() - {"__metadata__"}), 2)
    header[first] = header[second]
    put(one.shard, header, data)
    return {one.shard.name}


@kind(REFUSED)
def shape_lies_about_the_size(one):
    def other(tensor):
        shape = list(tensor.shape)
        shape[one.random.randrange(len(shape))] += one.random.choice([-1, 1, 64])
        return tensor._replace(shape=shape)

    return one.change(lambda name, tensor: True, other)


@kind(REFUSED)
def shape_of_another_rank(one):
    change = one.random.choice([lambda shape: [1, *shape], lambda shape: [*shape, 1]])
    return one.change(lambda name, tensor: True, lambda tensor: tensor._replace(shape=change(tensor.shape)))


@kind(REFUSED)
def unknown_dtype(one):
    dtype = one.random.choice(["F7", "", "f32", "F8_E3M4", 32, None, ["F32"]])
    return one.change(lambda name, tensor: True, lambda tensor: tensor._replace(dtype=dtype))


@kind(REFUSED)
def wrong_dtype(one):
    """Of the same size. BF16 -> F16 is not among them: that is another checkpoint, and no reader can know."""
    wrong = {
        "U32": ["I32", "F32"], "BF16": ["I16", "U16"], "F32": ["I32", "U32"], "I64": ["F64"],
        "U8": ["I8", "BOOL", "F8_E5M2"], "I8": ["BOOL", "F8_E4M3", "F8_E8M0", "F8_E5M2"],
    }  # fmt: skip
    choose = lambda tensor: tensor._replace(dtype=one.random.choice(wrong[tensor.dtype]))  # noqa: E731
    rare = one.random.random() < 0.5  # half of the time something else than plain numbers
    return one.change(lambda name, tensor: not rare or tensor.dtype not in ("BF16", "F32"), choose)


@kind(HARMLESS)
def right_dtype_of_another_name(one):
    same = {"U8": ["F8_E8M0", "F8_E4M3"], "I8": ["U8"], "I64": ["U64"]}
    return one.change(
        lambda name, tensor: tensor.dtype in same,
        lambda tensor: tensor._replace(dtype=one.random.choice(same[tensor.dtype])),
    )


@kind(REFUSED)
def key_twice(one):
    path = one.random.choice([one.shard, one.index])
    name = one.random.choice(sorted(tensors_in(one.shard)))
    if path == one.index:
        told = json.dumps(json.loads(path.read_text())["weight_map"])
        path.write_text(f'{{"weight_map": {told[:-1]}, {json.dumps(name)}: "{one.shard.name}"}}}}')
    else:
        header, data = parse(path.read_bytes())
        again = f", {json.dumps(name)}: {json.dumps(header[name])}}}"
        put(path, (json.dumps(header)[:-1] + again).encode(), data)
    return {path.name}


# --- which tensors ---------------------------------------------------------------------------------------------


def _without(one, wanted):
    path, tensors, name = one.choose(wanted)
    del tensors[name]
    write(path, tensors)
    one.relist()
    return one.names[name] if name.endswith(".biases") else {f"'{name}'"}


@kind(REFUSED)
def tensor_missing(one):
    return _without(one, lambda name, tensor: True)


@kind(REFUSED, "fp8", "fp4", "affine", "mxfp4", "mxfp8", "nvfp4")
def scale_missing(one):
    return _without(one, lambda name, tensor: name.endswith((".scale", ".scales", ".biases")))


@kind(REFUSED)
def unknown_tensor(one):
    name = one.random.choice(
        [
            *("x", "layers.0.attn.wo_c.weight", "model.layers.9.attn_norm.weight", "layers.0.ffn.experts.99.w1.weight"),
            *("layers.0.two\nlines", "\x1b[31mlayers.0.red", "layers.0." + "long" * 3000),
        ]
    )
    one.add(name, Tensor("F32", [2], bytes(8)))
    return {repr(name)[1:100].removesuffix("'")}


def _other(tensor, random):
    """The same type and shape, one bit changed."""
    data = bytearray(tensor.data)
    data[random.randrange(len(data))] ^= 1
    return tensor._replace(data=bytes(data))


@kind(REFUSED)
def twin_of_another_prefix(one):
    _, tensors, name = one.choose()
    twin = one.random.choice(
        [before for before in ("", "model.", "language_model.model.") if before + plain(name) != name]
    )
    one.add(twin + plain(name), _other(tensors[name], one.random))
    return {name, twin + plain(name)}


@kind(HARMLESS)
def twin_that_is_equal(one):
    _, tensors, name = one.choose()
    twin = plain(name) if plain(name) != name else f"model.{name}"
    one.add(twin, tensors[name])
    return {name, twin}


@kind(REFUSED)
def twin_of_another_family(one):
    found = []
    for published, kept in one.reading.places.items():
        name = one.reading.names[kept[0].tensor]
        for family in FAMILIES.values():
            twin = family.written(family.places(published, one.told["o_groups"])[0].tensor)
            if plain(twin) not in one.reading.names:
                found.append((name, twin))
    name, twin = one.random.choice(found)
    tensors = next(held for held in map(tensors_in, one.shards) if name in held)
    one.add(twin, _other(tensors[name], one.random))
    return {name, twin}


@kind(REFUSED)
def tensor_in_two_shards(one):
    path, tensors, name = one.choose()
    second = one.random.choice([other for other in one.shards if other != path])
    write(second, tensors_in(second) | {name: tensors[name]})
    if one.random.random() < 0.5:
        one.index.unlink()
    return {name}


@kind(REFUSED)
def index_of_another_place(one):
    told = json.loads(one.index.read_text())
    name = one.random.choice(sorted(tensors_in(one.shard)))
    other = one.random.choice([path.name for path in one.shards if path != one.shard])
    changed = one.random.choice([{name: other}, {name: "gone.safetensors"}, {name: 7}, {name: None}, {}])
    del told["weight_map"][name]
    told["weight_map"] |= changed
    one.index.write_text(json.dumps(told))
    return {name, "gone.safetensors"}


@kind(REFUSED)
def index_that_leaves_the_folder(one):
    outside = one.folder.parent / "outside" / one.shard.name
    outside.parent.mkdir()
    shutil.move(one.shard, outside)
    how = one.random.choice(["..", "absolute", "link"])
    name = {"..": f"../outside/{one.shard.name}", "absolute": str(outside), "link": one.shard.name}[how]
    if how == "link":
        one.shard.symlink_to(outside)
    told = json.loads(one.index.read_text())
    told["weight_map"] = {key: name if at == one.shard.name else at for key, at in told["weight_map"].items()}
    one.index.write_text(json.dumps(told))
    return {"which is outside the folder"}
