"""What every test may ask for: the recordings and the small models that lie beside the project."""

from pathlib import Path

import pytest

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
