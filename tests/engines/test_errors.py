import pickle

import pytest

from deployments.interfaces import BadRequest, EngineBusy, EngineError, EngineFailed


@pytest.mark.parametrize("kind", [EngineError, EngineBusy, EngineFailed, BadRequest])
def test_an_error_survives_the_way_between_replicas(kind: type[EngineError]) -> None:
    error = kind("no voice 'x'", stage="tts", engine="kokoro")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (copy.message, copy.stage, copy.engine, str(copy)) == (
        error.message,
        "tts",
        "kokoro",
        "tts (kokoro): no voice 'x'",
    )
