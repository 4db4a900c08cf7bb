"""mlx-lm's commands with this model: ``python -m dsv4_mlx generate --model FOLDER ...``, ``server``, ``chat``, ...

Our own are ``generate --mtp``, see ``generate.py``, and ``convert``, see ``conversion.py``. ``server --mtp`` is
mlx-lm's server with another decoding, see ``mtp_server.py``.
"""

import argparse
import importlib.metadata
import json
import sys
import time
import traceback
from pathlib import Path

import mlx_lm
from mlx_lm import cli
from mlx_lm.convert import MODEL_CONVERSION_DTYPES, QUANT_RECIPES
from mlx_lm.generate import (
    DEFAULT_MAX_TOKENS,
    DEFAULT_MIN_P,
    DEFAULT_SEED,
    DEFAULT_TEMP,
    DEFAULT_TOP_K,
    DEFAULT_TOP_P,
    str2bool,
)

from . import conversion
from .errors import UsageError, reason
from .generate import MOST_DRAFTS, generate
from .registration import register
from .safetensors_folder import args_of, read_config


def generate_mtp(arguments: list[str]):
    """Load a model, generate with drafts, print text and figures."""
    parser = argparse.ArgumentParser(
        prog="python -m dsv4_mlx generate --mtp",
        description="Generate text whose tokens the model's MTP block drafts and the model verifies. Each token is as "
        "likely as without --mtp; with --temp 0 they are the same.",
    )
    parser.add_argument("--mtp", action="store_true", required=True, help="without it the command is mlx-lm's own")
    parser.add_argument("--model", required=True, help="folder of the checkpoint, with its MTP tensors")
    parser.add_argument(
        "--prompt",
        "-p",
        required=True,
        help="put into the tokenizer's chat template, if it has one; - is standard input",
    )
    parser.add_argument(
        "--max-tokens", "-m", type=int, default=DEFAULT_MAX_TOKENS, help="tokens to generate at most (%(default)s)"
    )
    parser.add_argument("--temp", type=float, default=DEFAULT_TEMP, help="0 takes the best token (%(default)s)")
    parser.add_argument("--top-p", type=float, default=DEFAULT_TOP_P, help="(%(default)s)")
    parser.add_argument("--top-k", type=int, default=DEFAULT_TOP_K, help="(%(default)s)")
    parser.add_argument("--min-p", type=float, default=DEFAULT_MIN_P, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="of what --temp draws")
    parser.add_argument(
        "--draft-tokens", type=int, default=1, help=f"drafts a verification, 1 to {MOST_DRAFTS} (%(default)s)"
    )
    parser.add_argument(
        "--verbose", type=str2bool, default=True, help="F: the text alone, without speed-up and other figures"
    )
    given = vars(parser.parse_args(arguments))
    prompt, verbose = given.pop("prompt"), given.pop("verbose")
    del given["mtp"]
    try:
        model, tokenizer = mlx_lm.load(given.pop("model"))
    except UsageError as error:
        parser.error(str(error))
    prompt = sys.stdin.read() if prompt == "-" else prompt.replace("\\n", "\n").replace("\\t", "\t")
    if tokenizer.has_chat_template:
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)
    try:
        text = generate(model, tokenizer, prompt, verbose=verbose, **given)
    except UsageError as error:
        parser.error(str(error))
    if not verbose:
        print(text)


def convert(arguments: list[str]):
    """Write a checkpoint of any family as F2 or F3."""
    parser = argparse.ArgumentParser(
        prog="python -m dsv4_mlx convert",
        description="Convert a checkpoint of any family, one layer in memory at a time. Without -q or --recipe "
        "every matrix stays as it is: published fp8 and fp4 become MXFP8 and MXFP4, bit for bit.",
    )
    parser.add_argument("--hf-path", "--model", required=True, metavar="DIR", help="the checkpoint, a local folder")
    parser.add_argument("--mlx-path", default="mlx_model", metavar="DIR", help="the new folder (%(default)s)")
    parser.add_argument("-q", "--quantize", action="store_true", help="quantise every matrix but the routers'")
    parser.add_argument("--q-group-size", type=int, help="numbers that share a scale; default: the mode's")
    parser.add_argument("--q-bits", type=int, help="bits a number; default: the mode's")
    parser.add_argument(
        "--q-mode", default="affine", choices=["affine", "mxfp4", "nvfp4", "mxfp8"], help="(%(default)s)"
    )
    parser.add_argument("--quant-predicate", choices=QUANT_RECIPES, help="one of mlx-lm's mixed recipes, with -q")
    parser.add_argument("--recipe", metavar="FILE", help='JSON: module pattern -> settings, false or "keep"')
    parser.add_argument("--dtype", choices=MODEL_CONVERSION_DTYPES, help="of what is not quantised (the config's)")
    parser.add_argument("-d", "--dequantize", action="store_true", help="decode every matrix")
    parser.add_argument("--family", default="F2", choices=["F2", "F3"], help="names of the new folder (%(default)s)")
    given = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        wanted = _wanted(given)
        conversion.convert(given.hf_path, given.mlx_path, given.family, wanted, given.dtype, _say)
    except UsageError as error:
        parser.error(str(error))
    print(f"{given.mlx_path} is written ({time.monotonic() - started:.0f} s).")


def _wanted(given: argparse.Namespace):
    """What the options say of each matrix. Raises UsageError."""
    chosen = [given.quantize, given.dequantize, given.recipe is not None]
    if sum(chosen) > 1:
        raise UsageError("Choose one of --quantize, --dequantize and --recipe.")
    if given.quant_predicate and not (given.quantize and given.q_mode == "affine"):
        raise UsageError("--quant-predicate needs -q and the mode affine.")
    if given.quant_predicate:
        args = args_of(Path(given.hf_path), read_config(Path(given.hf_path)))
        return conversion.mixed(given.quant_predicate, args, given.q_group_size)
    if given.quantize:
        told = {"mode": given.q_mode, "bits": given.q_bits, "group_size": given.q_group_size}
        found = conversion.format_of("every matrix", {key: value for key, value in told.items() if value is not None})
        return lambda name, published: found
    if given.dequantize:
        return lambda name, published: None
    if given.recipe:
        try:
            return conversion.recipe_of(json.loads(Path(given.recipe).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"{given.recipe} is no recipe ({reason(error)}).") from error
    return None


def without_store(arguments: list[str]) -> list[str]:
    """The arguments of `server`; with a draft model it keeps no prompts, unless the user says how many: mlx-lm stores
    such a cache under one token more than it holds (docs/serving.md)."""
    given = {one.partition("=")[0] for one in arguments}
    if "server" not in arguments[:1] or "--draft-model" not in given or "--prompt-cache-size" in given:
        return arguments
    _say("With --draft-model no prompts are stored, as mlx-lm goes on wrongly from them; --prompt-cache-size N does.")
    return [*arguments, "--prompt-cache-size", "0"]


def mlx_lm_command():
    """mlx-lm's own, but that a checkpoint or tokenizer that it cannot use is a sentence and exit code 2."""
    sys.argv[1:] = without_store(sys.argv[1:])
    try:
        if sys.argv[1:2] == ["server"] and "--mtp" in sys.argv:
            from . import mtp_server  # loads mlx-lm's server

            sys.argv[2:] = mtp_server.prepare(sys.argv[2:])
        cli.main()
    except UsageError as error:
        _end(str(error))
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        if not any(Path(frame.filename).name == "tokenizer_utils.py" for frame in frames):
            raise
        known, said = importlib.metadata.version("transformers"), f"{type(error).__name__}: {reason(error)}"
        _end(f"transformers {known} cannot load the tokenizer ({said}); is its class newer?")


def _end(sentence: str):
    print(f"python -m dsv4_mlx: error: {sentence}", file=sys.stderr)
    sys.exit(2)


def _say(text: str):
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    register()
    if sys.argv[1:2] == ["generate"] and "--mtp" in sys.argv:
        generate_mtp(sys.argv[2:])
    elif sys.argv[1:2] == ["convert"]:
        convert(sys.argv[2:])
    else:
        mlx_lm_command()
