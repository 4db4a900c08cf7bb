"""Kinds of damage to checkpoints: each changes a copy at a place that chance chooses, and says what must come of it."""

import json
import struct
from collections import defaultdict
from types import SimpleNamespace
from typing import NamedTuple

from dsv4_checkpoints import FAMILIES, Settings, read
from dsv4_checkpoints.folder import INDEX, read_names
from parity.jobs.fixture import VARIANTS

REFUSED = "refused"  # by all three
HARMLESS = "harmless"  # refused, or the same values
VALUES = "values"  # refused by both loads; a conversion may carry them on, and then its folder is refused

KINDS = {}  # name -> (damage, outcome, needs)
SAMPLES = ("layers.1.attn.wq_a", "layers.1.ffn.experts.0.w1", "mtp.0.e_proj", "head")


class Tensor(NamedTuple):
    """A tensor as a file holds it."""

    dtype: str
    shape: list
    data: bytes


def packings(variant):
    """How the matrices of a variant are stored; with "float scales" where those of fp8 are."""
    formats = VARIANTS[variant].formats
    found = {one.kind if one else "float" for one in map(formats, SAMPLES)}
    return found | ({"float scales"} if VARIANTS[variant].float_scales else set())


def kind(outcome, *needs):
    """Register a kind of damage, for variants with one of these packings or for all."""

    def register(damage):
        KINDS[damage.__name__] = (damage, outcome, needs)
        return damage

    return register


def parse(content):
    """The header and the data of a file."""
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def put(path, header, data, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def tensors_in(path):
    header, data = parse(path.read_bytes())
    header.pop("__metadata__", None)
    return {name: Tensor(one["dtype"], one["shape"], data[slice(*one["data_offsets"])]) for name, one in header.items()}


def write(path, tensors):
    header, place = {"__metadata__": {"format": "mlx"}}, 0
    for name, one in tensors.items():
        header[name] = {"dtype": one.dtype, "shape": one.shape, "data_offsets": [place, place + len(one.data)]}
        place += len(one.data)
    put(path, header, b"".join(one.data for one in tensors.values()))


class Known:
    """What a pristine checkpoint is: its config, how it is read, and by what names a message may call a tensor."""

    def __init__(self, folder):
        self.told = json.loads((folder / "config.json").read_text())
        self.reading = read(SimpleNamespace(**self.told), read_names(folder), Settings.of(self.told))
        self.names = defaultdict(set)  # its own, its weight's, its parameter's
        for name, places in self.reading.places.items():
            own = {place.tensor.removesuffix(".weight") for place in FAMILIES["F0"].places(name, self.told["o_groups"])}
            for place in places:
                for tensor in self.reading.parts(place).values():
                    self.names[tensor] |= {tensor, self.reading.names[place.tensor]}
                    self.names[tensor] |= {f"{one}{leaf}" for one in own for leaf in (".weight", ".scales", ".biases")}
                    self.names[tensor] |= set() if place.leaf else own


class Checkpoint:
    """A copy of a pristine folder that is to be damaged."""

    def __init__(self, folder, random, known):
        self.folder, self.random = folder, random
        self.told, self.reading, self.names = known.told, known.reading, known.names
        self.index, self.config = folder / INDEX, folder / "config.json"
        self.shards = sorted(folder.glob("*.safetensors"))
        self.shard = random.choice(self.shards)

    def choose(self, wanted=lambda name, one: True):
        """(file, its tensors, the name of one that is wanted)."""
        found = []
        for path in self.shards:
            tensors = tensors_in(path)
            found += [(path, tensors, name) for name, one in tensors.items() if wanted(name, one)]
        return self.random.choice(found)

    def change(self, wanted, changed):
        """Change one tensor that is wanted. Returns its names and its file's."""
        path, tensors, name = self.choose(wanted)
        tensors[name] = changed(tensors[name])
        write(path, tensors)
        return self.names[name] | {path.name}

    def relist(self):
        """An index that fits the files."""
        weight_map = {name: path.name for path in self.shards for name in tensors_in(path)}
        self.index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    def add(self, name, tensor):
        tensors = tensors_in(self.shard)
        write(self.shard, tensors | {name: tensor})
        self.relist()

    def tell(self, **changed):
        self.config.write_text(json.dumps(self.told | changed))

    def any_file(self):
        return self.random.choice([*self.shards, self.index, self.config])
