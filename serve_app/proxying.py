"""What stands in front of the ingress, read from a Serve config: HAProxy where the config asks for it, else Serve's own proxy.

Pure: the config and the name of the platform are arguments.
"""

from collections.abc import Mapping
from typing import Any

HAPROXY_SWITCH = "RAY_SERVE_ENABLE_HA_PROXY"
STATISTICS_PORTS = (8404, 9101)
"""Of HAProxy, on every node. Ray 2.60 binds them to all interfaces and has no option for it."""
SERVE_PROXY_CALLERS = 20
"""Callers whose frames Serve's own proxy carries on two cores."""


def wants_haproxy(document: Mapping[str, Any]) -> bool:
    options = document.get("controller_options") or {}
    return _environment(options).get(HAPROXY_SWITCH) == "1"


def is_half_switched(document: Mapping[str, Any]) -> bool:
    """The controller and an application disagree: HAProxy would have no replica to send to, or replicas no HAProxy."""
    applications = document.get("applications") or []
    wanted = wants_haproxy(document)
    return any((_environment(one).get(HAPROXY_SWITCH) == "1") != wanted for one in applications)


def problems(document: Mapping[str, Any], platform: str) -> tuple[str, ...]:
    """What keeps this config from serving on `platform` (`sys.platform`), with the remedy."""
    if wants_haproxy(document) and platform != "linux":
        return (elsewhere(platform),)
    if is_half_switched(document):
        return (
            f"{HAPROXY_SWITCH} is not the same in controller_options and in the application's runtime_env: write it in both",
        )
    return ()


def warnings(document: Mapping[str, Any], platform: str) -> tuple[str, ...]:
    if wants_haproxy(document) and platform == "linux":
        ports = " and ".join(map(str, STATISTICS_PORTS))
        return (
            f"HAProxy's statistics listen on ports {ports} of all interfaces: where this machine is no container and others "
            "can reach it, let a firewall admit 8000 and ssh alone",
        )
    return ()


def elsewhere(platform: str) -> str:
    """What to write where there is no HAProxy."""
    return (
        f'HAProxy mode is for Linux and this is {platform}: write {HAPROXY_SWITCH}: "0" in controller_options and in the '
        f"application's runtime_env. Serve's own proxy then carries about {SERVE_PROXY_CALLERS} callers"
    )


def _environment(options: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = (options.get("runtime_env") or {}).get("env_vars") or {}
    return found
