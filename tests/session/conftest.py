"""Every session test runs twice: with text delivered as by `direct_socket`, and with all received as by ASGI."""

import pytest
from session.calls import MemoryTransport


@pytest.fixture(autouse=True, params=[True, False], ids=["direct", "asgi"])
def _way_of_text(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryTransport, "is_direct", request.param)
