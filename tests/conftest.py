"""What holds for every test: nothing is written into the home of whoever runs them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def home_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Speeds measured here are neither read from nor written to the real file, by child processes neither."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RIGFIT_HOME", str(tmp_path_factory.mktemp("rigfit-home")))
        yield
