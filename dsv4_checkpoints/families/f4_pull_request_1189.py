"""The names of mlx-lm's pull request 1189: those of 1192, but for the hyper-connections."""

from dataclasses import replace

from ..family import hyper_connections
from .f2_mlx_community import FAMILY as F2

FAMILY = replace(
    F2,
    id="F4",
    title="names of mlx-lm pull request 1189",
    ports=("mlx-lm with pull request 1189",),
    block=F2.block | hyper_connections("hc_attn.{}", "hc_ffn.{}"),
)
