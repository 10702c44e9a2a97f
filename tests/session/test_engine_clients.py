"""What a call through a handle comes to when Serve has no replica for it."""

from typing import Any

import pytest
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError

from deployments.interfaces import EngineFailed
from serve_app.session.engine_clients import cancelling


class Unassigned:
    """A response whose deployment was taken away: it raises when awaited, and once more when cancelled."""

    error = DeploymentUnavailableError(DeploymentID(name="LanguageModel", app_name="voice"))

    async def __anext__(self) -> Any:
        raise self.error

    def cancel(self) -> None:
        raise self.error


async def test_a_deployment_that_is_gone_fails_the_call_and_not_the_session():
    with pytest.raises(EngineFailed, match="DeploymentUnavailableError"):
        async with cancelling(Unassigned(), "llm") as response:
            await anext(response)
