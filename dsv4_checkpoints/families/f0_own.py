"""The parameters of `dsv4_mlx` itself: what it has in memory, and what mlx-lm's commands save of it."""

from ..family import Family, Spot, collapse, hyper_connections

FAMILY = Family(
    "F0",
    "parameters of dsv4_mlx",
    top=collapse("hc_head.{}"),
    block={
        **hyper_connections("hc_attn.{}", "hc_ffn.{}"),
        **collapse("hc_head.{}"),
        "ffn.experts.{e}.w1": Spot("ffn.experts.w1", stacked=True),
        "ffn.experts.{e}.w2": Spot("ffn.experts.w2", stacked=True),
        "ffn.experts.{e}.w3": Spot("ffn.experts.w3", stacked=True),
    },
    wo_a_axes=3,
)
