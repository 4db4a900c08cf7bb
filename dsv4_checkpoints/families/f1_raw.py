"""As published by deepseek-ai: fp8 in tiles of 128 x 128, experts in fp4; Base with float32 scales; or plain floats."""

from ..family import Family

FAMILY = Family(
    "F1",
    "published (deepseek-ai)",
    packing="published",
    ports=("the official program", "transformers 5.10.1", "mlx-vlm (from 0.7.3 plain weights only)"),
)
