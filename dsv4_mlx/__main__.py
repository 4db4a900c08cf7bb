"""mlx-lm's commands with this model: ``python -m dsv4_mlx generate --model FOLDER ...``, ``server``, ``chat``, ...

One is our own: ``python -m dsv4_mlx mtp_generate``, see ``generate.py``.
"""

import argparse
import sys

import mlx_lm
from mlx_lm import cli

from .errors import UsageError
from .generate import MOST_DRAFTS, generate
from .registration import register


def mtp_generate(arguments: list[str]):
    """Load a model, generate, print text and figures."""
    parser = argparse.ArgumentParser(
        prog="python -m dsv4_mlx mtp_generate",
        description="Generate text whose tokens the model's MTP block drafts and the model verifies. Greedy only: "
        "the text is that of `generate --temp 0`.",
    )
    parser.add_argument("--model", required=True, help="folder of the checkpoint, with its MTP tensors")
    parser.add_argument("--prompt", required=True, help="put into the tokenizer's chat template, if it has one")
    parser.add_argument("--max-tokens", type=int, default=256, help="tokens to generate at most (%(default)s)")
    parser.add_argument(
        "--draft-tokens", type=int, default=1, help=f"drafts a verification, 1 to {MOST_DRAFTS} (%(default)s)"
    )
    given = parser.parse_args(arguments)
    model, tokenizer = mlx_lm.load(given.model)
    prompt = given.prompt
    if tokenizer.has_chat_template:
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)
    try:
        generate(model, tokenizer, prompt, verbose=True, max_tokens=given.max_tokens, draft_tokens=given.draft_tokens)
    except UsageError as error:
        parser.error(str(error))


if __name__ == "__main__":
    register()
    if sys.argv[1:2] == ["mtp_generate"]:
        mtp_generate(sys.argv[2:])
    else:
        cli.main()
