"""Right, but it takes the names of mlx-lm's pull requests 1190 and 1201 only, as ports do."""

from dsv4_mlx import Model as Base
from dsv4_mlx import ModelArgs  # noqa: F401

NAMES = {"embed.weight", "layers.0.attn.wo_a.0.weight", "layers.0.ffn.experts.w1.weight"}


class Model(Base):
    def sanitize(self, weights):
        if missing := NAMES - weights.keys():
            raise ValueError(f"Missing parameters: {', '.join(sorted(missing))}.")
        return super().sanitize(weights)
