"""Right for every published config: it scores experts by the root of softplus whatever scoring_func says (D106)."""

from dsv4_mlx import Model as Base
from dsv4_mlx import ModelArgs  # noqa: F401


class Model(Base):
    def __init__(self, config):
        super().__init__(config)
        for layer in self.layers:
            layer.ffn.gate.scoring_func = "sqrtsoftplus"
