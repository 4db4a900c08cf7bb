"""A checkpoint of any family written anew as F2 or F3, layer by layer, quantised as asked or left as it is."""

import fnmatch
import json
import os
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
from mlx_lm.convert import mixed_quant_predicate_builder

from dsv4_checkpoints import FAMILIES, FLOAT, CheckpointError, Family, Format, Reading
from dsv4_checkpoints.folder import INDEX, inside, read_names
from dsv4_checkpoints.settings import stated

from . import quantization
from .checkpoint import reading_of, refuse_twins
from .config import ModelArgs
from .errors import UsageError, as_usage_error, reason
from .respelling import Matrix, Target, assembled, targets
from .safetensors_folder import Tensors, args_of, read_config

KEEP = "keep"
LARGE = 2**26  # bytes of a module
# What makes a folder complete for mlx-lm besides weights and config.
BESIDE = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template*",
    "generation_config.json",
)  # fmt: skip

Wanted = Format | None | str  # a format, None for plain numbers, KEEP for what the source has


def convert(
    folder: str | Path,
    target: str | Path,
    family: str = "F2",
    wanted: Callable[[str, tuple[str, ...]], Wanted] | None = None,
    dtype: str | None = None,
    progress: Callable[[str], None] = print,
) -> Path:
    """Write the checkpoint in ``folder`` to ``target``, which must not exist, and which appears when it is whole.

    ``wanted`` says of a matrix, by its name in the new folder and its published names, what it becomes (default: what
    it is); ``dtype`` is the type of the plain matrices and norms, by default the config's. One layer is in memory at a
    time. Raises UsageError.
    """
    folder, target = Path(folder), Path(target)
    if os.path.lexists(target):
        raise UsageError(f"{target} exists already; give the name of a new folder.")
    config = read_config(folder)
    args = args_of(folder, config)
    tensors = Tensors(folder)
    reading = reading_of(tensors.stored, args)
    plain_type = getattr(mx, dtype or args.torch_dtype)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise UsageError(f"{target} cannot be written ({reason(error)}).") from error
    try:
        new.chmod(0o755)
        writer = Writer(new, reading, FAMILIES[family], args.o_groups, plain_type, wanted or (lambda *names: KEEP))
        refuse_twins(reading, tensors)
        writer.write(tensors, progress)
        write_config(new, config | {"torch_dtype": str(plain_type).rpartition(".")[2]}, writer.formats)
        _copy_beside(folder, new)
        read_names(new)  # a full disk leaves files that are too short
        new.rename(target)
    except OSError as error:
        raise UsageError(f"{target} cannot be written ({reason(error)}).") from error
    except CheckpointError as error:
        raise UsageError(f"{target} cannot be written whole ({error}).") from error
    except RuntimeError as error:  # MLX's, of files that it reads
        raise UsageError(f"{folder} cannot be converted ({reason(error)}).") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return target


class Writer:
    """A new folder's tensors, one shard a layer or ``shards`` in all; ``formats`` collects how each matrix was written.

    ``float_scales``: fp8 has float32 scales, as in the Base variants.
    """

    def __init__(
        self,
        folder: Path,
        reading: Reading,
        family: Family,
        groups: int,
        plain: mx.Dtype,
        wanted: Callable[[str, tuple[str, ...]], Wanted],
        shards: int | None = None,
        float_scales: bool = False,
    ):
        self.folder, self.reading, self.family, self.groups = folder, reading, family, groups
        self.plain, self.wanted, self.shards, self.float_scales = plain, wanted, shards, float_scales
        self.formats: dict[str, Format] = {}

    def write(self, tensors: "Tensors", progress: Callable[[str], None]):
        """All shards and their index. Raises OSError."""
        shards = _shards(list(targets(self.reading, self.family, self.groups)), self.shards)
        weight_map, total, started = {}, 0, time.monotonic()
        for number, (part, modules) in enumerate(shards, 1):
            progress(f"{part} ({number} of {len(shards)}{_left(started, number - 1, len(shards))})")
            name = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
            arrays = dict(self._arrays(modules, tensors))
            try:
                mx.save_safetensors(str(self.folder / name), arrays, metadata={"format": "mlx"})
            except RuntimeError as error:  # what it saves has been read and computed already
                raise OSError(reason(error)) from error
            weight_map |= dict.fromkeys(arrays, name)
            total += sum(value.nbytes for value in arrays.values())
            arrays.clear()  # before the next layer
            tensors.forget()
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (self.folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")

    def _arrays(self, modules: list[Target], tensors: Tensors) -> Iterator[tuple[str, mx.array]]:
        for module in modules:
            slot = self.reading.slots[module.pieces[0][0]]
            matrix = assembled(module, self.reading, tensors, self.family, self.groups)
            if slot.is_matrix:
                matrix = self._stored(module, matrix)
            elif slot.published != "I64":
                kept = mx.float32 if slot.published == "F32" else self.plain
                matrix = matrix.map(lambda value, kept=kept: value.astype(kept))
            for leaf, value in matrix.parts.items():
                mx.eval(value)
                yield self.family.written(f"{module.name}.{leaf}" if module.leaf else module.name), value
            if sum(value.nbytes for value in matrix.parts.values()) > LARGE:
                tensors.forget()  # or a layer would be there twice, as it was and as it becomes

    def _stored(self, module: Target, matrix: Matrix) -> Matrix:
        name = self.family.written(module.name)
        wanted = self.wanted(name, tuple(piece[0].removesuffix(".weight") for piece in module.pieces))
        if module.name.endswith("ffn.gate"):
            wanted = None
        if wanted == KEEP:
            wanted = matrix.format if matrix.format != FLOAT else None
        self.formats[name] = wanted or FLOAT
        if wanted == matrix.format:
            return matrix
        if wanted is not None and wanted.bits and self.reading.slots[module.pieces[0][0]].shape[1] % wanted.group:
            self.formats[name] = FLOAT  # as in mlx-lm: what does not divide into groups stays
            wanted = None
        matrix = _changed(matrix, wanted, self.plain)
        if self.float_scales and "scale" in matrix.parts:
            matrix.parts["scale"] = quantization.decode_scale(matrix.parts["scale"])
        return matrix


def _changed(matrix: Matrix, wanted: Format | None, plain: mx.Dtype) -> Matrix:
    """The matrix in another format, entry by entry, so that one expert is in float32 at a time."""
    if wanted is not None and (matrix.format.kind, wanted.kind) == ("mxfp4", "fp4"):  # the same bytes
        return Matrix(wanted, {"weight": matrix.parts["weight"].view(mx.int8), "scale": matrix.parts["scales"]})
    if matrix.parts["weight"].ndim == 3:
        entries = [
            _changed(matrix.map(lambda value, i=i: value[i]), wanted, plain) for i in range(len(matrix.parts["weight"]))
        ]
        return Matrix(
            entries[0].format, {leaf: mx.stack([e.parts[leaf] for e in entries]) for leaf in entries[0].parts}
        )
    values = matrix.decoded().astype(plain)
    parts = {"weight": values}
    if wanted is not None and not wanted.bits:
        encode = quantization.encode_fp8 if wanted.kind == "fp8" else quantization.encode_fp4
        parts = dict(zip(("weight", "scale"), encode(values.astype(mx.float32)), strict=True))
    elif wanted is not None:
        packed = mx.quantize(values, wanted.group, wanted.bits, mode=wanted.kind)
        parts = dict(zip(("weight", "scales", "biases"), packed, strict=False))
    mx.eval(parts)
    return Matrix(wanted or FLOAT, parts)


def _shards(modules: list[Target], count: int | None) -> list[tuple[str, list[Target]]]:
    """(what it is, modules) of each shard: the whole model's own, then a layer each, or ``count`` alike."""
    if count is not None:
        cuts = [len(modules) * i // count for i in range(count + 1)]
        return [(f"shard {i}", modules[cuts[i - 1] : cuts[i]]) for i in range(1, count + 1)]
    parts: dict[str, list[Target]] = {}
    for module in modules:
        kind, number, *_ = (*module.name.split("."), "")
        named = {"layers": f"layer {number}", "mtp": f"MTP block {number}"}
        parts.setdefault(named.get(kind, "embedding and head"), []).append(module)
    return list(parts.items())


def _left(started: float, done: int, of: int) -> str:
    """The time left, once some are done that took a while."""
    spent = time.monotonic() - started
    return f", {spent / done * (of - done):.0f} s left" if done and spent > 5 else ""


def write_config(folder: Path, config: dict, formats: dict[str, Format]):
    """The config as mlx-lm writes it: the commonest format as default, each other module under its name."""
    config = {key: value for key, value in config.items() if key not in ("quantization", "quantization_config")}
    packed = [found for found in formats.values() if found.bits]
    if packed:
        usual = Counter(packed).most_common(1)[0][0]
        others = {name: _settings(found) for name, found in formats.items() if found != usual}
        config.pop("expert_dtype", None)
        config["quantization"] = _settings(usual) | others
        config["quantization_config"] = config["quantization"]
    (folder / "config.json").write_text(json.dumps(dict(sorted(config.items())), indent=1) + "\n")


def _settings(found: Format) -> dict | bool:
    return found != FLOAT and {"group_size": found.group, "bits": found.bits, "mode": found.kind}


def _copy_beside(folder: Path, new: Path):
    for path in sorted(folder.iterdir()):
        if any(fnmatch.fnmatch(path.name, pattern) for pattern in BESIDE) and path.is_file() and inside(folder, path):
            shutil.copyfile(path, new / path.name)


def recipe_of(told: object) -> Callable[[str, tuple[str, ...]], Wanted]:
    """What a recipe file says: patterns of module names (new or published) -> settings, false or "keep".

    The first pattern that fits decides; what none fits is kept. Raises UsageError.
    """
    if not isinstance(told, dict) or not told:
        raise UsageError("A recipe is a JSON object of module patterns and their settings.")
    rules: list[tuple[str, Wanted]] = []
    for pattern, one in told.items():
        rules.append((pattern, one if one == KEEP else None if one is False else format_of(pattern, one)))

    def wanted(name: str, published: tuple[str, ...]) -> Wanted:
        names = (name, *published)
        return next((rule for pattern, rule in rules if any(fnmatch.fnmatchcase(n, pattern) for n in names)), KEEP)

    return wanted


def format_of(what: str, told: object) -> Format:
    """Settings as in a config's quantization. Raises UsageError."""
    if not isinstance(told, dict):
        raise UsageError(f'{what} is {told!r}; give settings, false or "keep".')
    try:
        return stated(what, told)
    except CheckpointError as error:
        raise as_usage_error(error) from error


def mixed(recipe: str, args: ModelArgs, group_size: int | None) -> Callable[[str, tuple[str, ...]], Wanted]:
    """mlx-lm's own recipe of this name, asked about the names of F2."""

    class Names:
        layers = range(args.num_hidden_layers)

        @staticmethod
        def named_modules():
            return [("model.layers.0.ffn.switch_mlp.down_proj", None)]

    predicate = mixed_quant_predicate_builder(recipe, Names, group_size or 64)

    def wanted(name: str, published: tuple[str, ...]) -> Wanted:
        last = f"layers.{args.num_hidden_layers - 1}"  # mlx-lm knows no MTP block; it is one more of the last layers
        asked = re.sub(r"^mtp\.\d+", last, published[0])
        spelled = FAMILIES["F2"].places(f"{asked}.weight", args.o_groups)[0].name
        return format_of(name, predicate(FAMILIES["F2"].written(spelled), None))

    return wanted
