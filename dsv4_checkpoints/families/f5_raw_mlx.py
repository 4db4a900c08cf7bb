"""Published names with MLX's quantised tensors, expert by expert: mixed Q2/Q3, DeepSeek-V4-Flash-0731-MXFP4-MLX."""

from ..family import Family

FAMILY = Family("F5", "published names with MLX's quantised tensors", ports=("mlx-vlm since issue 1977", "Rapid-MLX"))
