"""What every test may ask for: the recordings and the small models that lie beside the project."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The gate draws the same examples in every run; FUZZ_EXAMPLES=1000 draws new ones.
settings.register_profile("gate", derandomize=not os.environ.get("FUZZ_EXAMPLES"))
settings.load_profile("gate")

_SHARED = Path(__file__).parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared_audio() -> Path:
    """The folder of test recordings (`../shared/audio` from the project's root)."""
    return _found("audio")


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """The folder of small test models (`../shared/models` from the project's root)."""
    return _found("models")


def _found(name: str) -> Path:
    folder = _SHARED / name
    if not folder.is_dir():
        pytest.skip(f"test data is not here: ../shared/{name}")
    return folder
