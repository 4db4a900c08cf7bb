"""The marker of tests that drive a browser."""


def pytest_configure(config):
    config.addinivalue_line("markers", "browser: drives an installed Chromium; run with -m browser")
