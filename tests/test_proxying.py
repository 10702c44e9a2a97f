"""HAProxy mode is Linux's: elsewhere the doctor and the application say what to write instead."""

from typing import Any

import pytest

from serve_app import config, proxying
from serve_app.app import check_platform
from serve_app.config import ConfigError


def document(controller: str | None, application: str | None) -> dict[str, Any]:
    def switched(value: str | None) -> dict[str, Any]:
        return {} if value is None else {"runtime_env": {"env_vars": {proxying.HAPROXY_SWITCH: value}}}

    return {"controller_options": switched(controller), "applications": [switched(application)]}


@pytest.mark.parametrize("off", [None, "0"])
@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_serves_own_proxy_works_everywhere_and_needs_no_word(off: str | None, platform: str) -> None:
    assert proxying.problems(document(off, off), platform) == ()
    assert proxying.warnings(document(off, off), platform) == ()
    assert proxying.problems({}, platform) == ()


def test_on_linux_the_open_statistics_are_told() -> None:
    assert proxying.problems(document("1", "1"), "linux") == ()
    [warning] = proxying.warnings(document("1", "1"), "linux")
    assert "8404 and 9101" in warning


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_elsewhere_it_is_told_what_to_write(platform: str) -> None:
    [problem] = proxying.problems(document("1", "1"), platform)
    assert platform in problem
    assert f'{proxying.HAPROXY_SWITCH}: "0"' in problem
    assert proxying.warnings(document("1", "1"), platform) == ()


@pytest.mark.parametrize(("controller", "application"), [("1", None), ("1", "0"), (None, "1")])
def test_a_switch_thrown_in_one_place_is_a_problem(controller: str | None, application: str | None) -> None:
    [problem] = proxying.problems(document(controller, application), "linux")
    assert "in both" in problem


def test_an_application_does_not_start_behind_a_proxy_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(proxying.HAPROXY_SWITCH, "1")
    assert config.is_haproxy_mode()
    check_platform("linux", haproxy=True)
    check_platform("darwin", haproxy=False)
    with pytest.raises(ConfigError, match="darwin"):
        check_platform("darwin", haproxy=True)
    monkeypatch.setenv(proxying.HAPROXY_SWITCH, "0")
    assert not config.is_haproxy_mode()
