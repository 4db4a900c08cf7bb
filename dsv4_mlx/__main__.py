"""mlx-lm's commands with this model: ``python -m dsv4_mlx generate --model FOLDER ...``, ``server``, ``chat``, ..."""

from mlx_lm import cli

from .registration import register

if __name__ == "__main__":
    register()
    cli.main()
