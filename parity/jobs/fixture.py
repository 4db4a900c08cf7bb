"""`parity fixture`: a synthetic checkpoint of any family, written as a stream."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dsv4_checkpoints import FAMILIES, Family, Format
from dsv4_mlx import ModelArgs
from dsv4_mlx.checkpoint import reading_of
from dsv4_mlx.conversion import Writer, write_config

from ..cases.synthetic import SIZES, Synthetic, config_of_size
from ..errors import NO_ROOM, BadEnvironment, BadInput
from ..judging.sides import to_mlx

PUBLISHED = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "scale_fmt": "ue8m0",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}


def affine(bits: int, group: int = 64) -> Format:
    """MLX's default mode."""
    return Format("affine", bits, group)


MXFP4, MXFP8, NVFP4 = Format("mxfp4", 4, 32), Format("mxfp8", 8, 32), Format("nvfp4", 4, 16)


@dataclass(frozen=True)
class Variant:
    """A family, and what becomes of a matrix by its published name; None where it stays plain."""

    family: Family
    formats: Callable[[str], Format | None]
    dtype: str = "bfloat16"
    float_scales: bool = False


def _raw(name: str) -> Format | None:
    if ".experts." in name:
        return Format("fp4")
    published = ("attn.wq_a", "attn.wq_b", "wkv", "wo_a", "wo_b", "indexer.wq_b", "w1", "w2", "w3", "e_proj", "h_proj")
    return Format("fp8") if name.endswith(published) and ".compressor." not in name else None


def _base(name: str) -> Format | None:
    return Format("fp8") if _raw(name) else None


def _eight_bits(name: str) -> Format:
    return MXFP4 if ".experts." in name else affine(8)


def _two_bits_mixed(name: str) -> Format:
    """Gate and up in groups of another size, and another one in every second layer."""
    if ".experts." not in name:
        return affine(6)
    odd = name.startswith("layers.") and int(name.split(".")[1]) % 2 == 1
    return {"w1": affine(2, 64 if odd else 32), "w3": affine(2, 32 if odd else 64), "w2": affine(3, 32)}[name[-2:]]


def _raw_mixed(name: str) -> Format | None:
    """Experts of 2 and 3 bits, attention of 6, an MXFP8 MTP block; the head stays plain by an explicit false."""
    if name == "head":
        return None
    if name.endswith(("e_proj", "h_proj")):
        return MXFP8
    if ".experts." in name:
        return affine(3 if name.endswith("w2") else 2)
    return affine(6) if ".attn." in name else affine(8)


F1, F2, F3, F4, F5, F8 = (FAMILIES[one] for one in ("F1", "F2", "F3", "F4", "F5", "F8"))
VARIANTS = {
    "F1": Variant(F1, _raw),
    "F1-base": Variant(F1, _base, float_scales=True),
    "F1-bfloat16": Variant(F1, lambda name: None),
    "F1-float32": Variant(F1, lambda name: None, "float32"),
    "F2": Variant(F2, _eight_bits),
    "F2-4bit": Variant(F2, lambda name: affine(4)),
    "F2-5bit": Variant(F2, lambda name: affine(5, 32)),
    "F2-2bit-DQ": Variant(F2, _two_bits_mixed),
    "F2-mxfp4": Variant(F2, lambda name: MXFP4),
    "F2-mxfp8": Variant(F2, lambda name: MXFP8),
    "F2-nvfp4": Variant(F2, lambda name: NVFP4),
    "F2-3d": Variant(replace(F2, wo_a_axes=3), _eight_bits),
    "F2-bfloat16": Variant(F2, lambda name: None),
    "F3": Variant(F3, lambda name: affine(4)),
    "F3-bfloat16": Variant(F3, lambda name: None),
    "F4": Variant(F4, lambda name: affine(6)),
    "F5": Variant(F5, _raw_mixed),
    "F5-mxfp4": Variant(F5, lambda name: MXFP4),
    "F8": Variant(F8, lambda name: None),
}


class _Drawn(Mapping):
    """Synthetic tensors as MLX's."""

    def __init__(self, tensors: Synthetic):
        self.tensors, self.stored, self.forget = tensors, tensors.stored, tensors.forget

    def __getitem__(self, name: str):
        return to_mlx(self.tensors[name])

    def __iter__(self):
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def write_fixture(
    folder: Path,
    published: dict,
    variant: str,
    size: str = "tiny",
    shards: int | None = None,
    mtp: bool = True,
    seed: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> Path:
    """Write a synthetic checkpoint to a folder that must not exist; it appears when it is whole.

    Raises BadInput, BadEnvironment.
    """
    if folder.exists() or folder.is_symlink():
        raise BadInput(f"{folder} exists already; give the name of a new folder.")
    if variant not in VARIANTS or size not in SIZES:
        raise BadInput(f"There is no family {variant} or no size {size}; see `parity fixture --help`.")
    chosen = VARIANTS[variant]
    config = config_of_size(published, size, mtp) | {"torch_dtype": chosen.dtype}
    args = ModelArgs.from_dict(dict(config))
    tensors = _Drawn(Synthetic(config, seed, "F32" if chosen.dtype == "float32" else "BF16", size == "layer"))
    reading = reading_of(tensors.stored, args)
    if shards is None and size != "layer":
        shards = 1
    new = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        new.chmod(0o755)
        import mlx.core as mx

        writer = Writer(
            new,
            reading,
            chosen.family,
            args.o_groups,
            getattr(mx, chosen.dtype),
            lambda name, names: chosen.formats(names[0]),
            shards,
            chosen.float_scales,
        )
        writer.write(tensors, progress)
        write_config(new, config, writer.formats)
        if chosen.family is F1 and any(one.kind != "float" for one in writer.formats.values()):
            told = {"quantization_config": PUBLISHED, "expert_dtype": "fp8" if chosen.float_scales else "fp4"}
            path = new / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | told, indent=1) + "\n")
        write_tokenizer(new, config["vocab_size"])
        new.rename(folder)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        full = getattr(error, "errno", None) in NO_ROOM
        raise (BadEnvironment if full else BadInput)(f"{folder} cannot be written ({reason}).") from error
    finally:
        if new is not None:
            shutil.rmtree(new, ignore_errors=True)
    return folder


def write_tokenizer(folder: Path, vocabulary: int) -> None:
    """One word a token, `w0` to the last, `w1` the end of a text, and a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{i}" if i != 1 else "</s>": i for i in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "w2 {% for m in messages %}w{{ 3 if m.role == 'user' else 4 }} {{ m.content }} {% endfor %}w4"
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(told, indent=1) + "\n")
