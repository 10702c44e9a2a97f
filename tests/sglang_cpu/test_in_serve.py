"""The engine in a replica of Ray Serve: it starts there, streams, and stops when the call is cancelled."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.bench_models import SGLANG_ON_CPU

pytestmark = [pytest.mark.timeout(900), pytest.mark.ray]

DRIVER = """
import json, sys, time
import ray
from ray import serve
from deployments import llm
from deployments.interfaces import ChatMessage, EngineInfo, Sampling
from deployments.options import LlmOptions

model, arguments, environment = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
options = LlmOptions(engine="sglang", model=model, engine_args=arguments)
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
deployment = llm.LanguageModel.options(ray_actor_options={"num_cpus": 1, "runtime_env": {"env_vars": environment}})
handle = serve.run(deployment.bind(options, EngineInfo("llm", "sglang", model)), name="llm", route_prefix=None)
question, sampling = [ChatMessage("user", "w4 w5")], Sampling(max_tokens=450, temperature=0.0)
call = handle.options(stream=True).generate
answer = list(call.remote(question, Sampling(max_tokens=20, temperature=0.0)))
started = time.monotonic()
whole = list(call.remote(question, sampling))
whole_s = time.monotonic() - started
stream = call.remote(question, sampling)
for _ in range(5):
    next(stream)
started = time.monotonic()
stream.cancel()
while handle.stats.remote().result()["active"]:
    time.sleep(0.001)
freed_s = time.monotonic() - started
print("\\n" + json.dumps({
    "deltas": len(answer), "finish": answer[-1].finish_reason, "whole_s": whole_s, "freed_s": freed_s,
    "cancelled": handle.stats.remote().result()["cancelled"],
}))
serve.shutdown()
ray.shutdown()
"""


ONE_LOOP = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}


@pytest.mark.parametrize("environment", [{}, ONE_LOOP], ids=["default", "one-loop"])
def test_a_replica_streams_and_stops(tiny_model: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(tiny_model), json.dumps(SGLANG_ON_CPU), json.dumps(environment)],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    print(
        f"\nsglang in Serve: cancel to free {told['freed_s'] * 1000:.0f} ms; the whole answer {told['whole_s'] * 1000:.0f} ms"
    )
    assert told["deltas"] > 10
    assert told["finish"] == "length"
    assert told["cancelled"] == 1
    assert told["freed_s"] < told["whole_s"] / 2
