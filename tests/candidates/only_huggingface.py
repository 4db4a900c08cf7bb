"""Right, but it takes the names of Hugging Face's model only, as ports do."""

from dsv4_mlx import Model as Base
from dsv4_mlx import ModelArgs  # noqa: F401

NAMES = {"model.embed_tokens.weight", "model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.attn_hc.fn"}


class Model(Base):
    def sanitize(self, weights):
        if missing := NAMES - weights.keys():
            raise ValueError(f"Missing parameters: {', '.join(sorted(missing))}.")
        return super().sanitize(weights)
