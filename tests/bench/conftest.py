"""Options of the speed benchmark; this folder's helper modules can be imported by their names."""


def pytest_addoption(parser):
    group = parser.getgroup("speed")
    group.addoption(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=PYTHON",
        help="a peer of `speed_worker.CANDIDATES`, and the Python of an environment that has it",
    )
    group.addoption("--blas", metavar="FILE", help="a BLAS to preload: MLX's ports run with it too, beside without")
    group.addoption("--short", action="store_true", help="minutes instead of an hour: fewer sizes, float32 alone")
    group.addoption("--speed-report", help="the folder for the figures as JSON and the plots")


def pytest_ignore_collect(collection_path, config):
    """Ports are timed only where benchmarks are asked for: that takes an hour, and a plain `pytest` is to be quick."""
    return True if collection_path.name == "test_speed.py" and not config.getoption("benchmark_enable") else None
