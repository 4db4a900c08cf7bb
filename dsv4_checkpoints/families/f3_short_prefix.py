"""mlx-community/deepseek-ai-DeepSeek-V4-Flash-*bit: the names of mlx-lm's pull requests 1190 and 1201."""

from ..family import Family, Spot

FAMILY = Family(
    "F3",
    "short prefix (names of mlx-lm pull requests 1190 and 1201)",
    block={
        "attn.wo_a": Spot("attn.wo_a.{g}", divided=True),
        "ffn.experts.{e}.w1": Spot("ffn.experts.w1", stacked=True),
        "ffn.experts.{e}.w2": Spot("ffn.experts.w2", stacked=True),
        "ffn.experts.{e}.w3": Spot("ffn.experts.w3", stacked=True),
    },
    ports=("mlx-lm with pull request 1190 or 1201",),
)
