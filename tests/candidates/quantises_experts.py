"""Right, but it quantises its experts as it builds, so that it takes no checkpoint whose experts are not packed."""

from dsv4_mlx import Model as Base
from dsv4_mlx import ModelArgs  # noqa: F401


class Model(Base):
    def sanitize(self, weights):
        if not any("expert" in name or "switch" in name for name in weights if name.endswith((".scale", ".scales"))):
            raise ValueError("Missing parameters: model.layers.0.ffn.switch_mlp.gate_proj.scales.")
        return super().sanitize(weights)
