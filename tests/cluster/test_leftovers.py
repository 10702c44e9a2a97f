"""An application that is ended takes its HAProxy with it, and no other."""

import signal
import subprocess
import sys

import pytest

from loadtest.application import end_haproxy


def waiting(name: str, node_id: str) -> "subprocess.Popen[bytes]":
    """A process that is called so and was given the configuration of a node."""
    command = [name, "-c", "import sys; sys.stdin.read()", f"/tmp/haproxy-serve/{node_id}/haproxy.cfg"]
    return subprocess.Popen(command, executable=sys.executable, stdin=subprocess.PIPE)


@pytest.mark.skipif(sys.platform != "linux", reason="HAProxy mode of Ray Serve is for Linux only")
def test_only_the_haproxy_of_that_node_ends() -> None:
    its_own, of_another, no_haproxy = (
        waiting("/bin/haproxy", "0a1b"),
        waiting("/bin/haproxy", "2c3d"),
        waiting("/bin/python", "0a1b"),
    )
    end_haproxy("0a1b")
    assert its_own.wait(timeout=10) == -signal.SIGKILL
    assert of_another.poll() is None
    assert no_haproxy.poll() is None
    its_own.communicate()
    for process in (of_another, no_haproxy):
        process.communicate()  # closes what they wait for
        assert process.wait(timeout=10) == 0
