"""Options of the speed benchmark; this folder's helper modules can be imported by their names."""


def pytest_addoption(parser):
    group = parser.getgroup("speed")
    group.addoption("--vlm-python", help="the Python of an environment with mlx-vlm; without it that peer is left out")
    group.addoption("--speed-report", help="the folder for the table, its JSON and the plots")


def pytest_ignore_collect(collection_path, config):
    """Ports are timed only where benchmarks are asked for: that takes an hour, and a plain `pytest` is to be quick."""
    return True if collection_path.name == "test_speed.py" and not config.getoption("benchmark_enable") else None
