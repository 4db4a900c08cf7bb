"""Right, but it takes the names of mlx-lm's pull request 1192 only, as ports do."""

from dsv4_mlx import Model as Base
from dsv4_mlx import ModelArgs  # noqa: F401

NAMES = {"model.embed_tokens.weight", "model.layers.0.attn_hc.fn", "model.layers.0.ffn.switch_mlp.up_proj.weight"}


class Model(Base):
    def sanitize(self, weights):
        if missing := NAMES - weights.keys():
            raise ValueError(f"Missing parameters: {', '.join(sorted(missing))}.")
        return super().sanitize(weights)
