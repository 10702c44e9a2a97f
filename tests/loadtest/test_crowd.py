"""The callers' process, as locust talks with it: commands in, outcomes and its own pace out."""

import json
import subprocess
import sys

from loadtest.application import ROOT, free_port


def test_a_crowd_obeys_tells_what_happened_and_ends_with_its_input():
    url = f"ws://127.0.0.1:{free_port()}/v1/realtime"
    command = [sys.executable, "-m", "loadtest.crowd", url, "--think-min", "0"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as crowd:
        assert "espeak" in json.loads(crowd.stdout.readline())["ready"]
        crowd.stdin.write(json.dumps({"open": "anna"}) + "\n" + json.dumps({"open": "bert"}) + "\n")
        crowd.stdin.flush()
        seen = [json.loads(crowd.stdout.readline())]
        while {"anna", "bert"} - {line.get("person") for line in seen} or "wanted" not in seen[-1]:
            seen.append(json.loads(crowd.stdout.readline()))
        refused = next(line for line in seen if line.get("person") == "anna")
        assert refused["name"] == "session opened"
        assert refused["failure"].startswith("no session: ")
        assert (seen[-1]["wanted"], seen[-1]["open"]) == (2, 0)
        crowd.stdin.write(json.dumps({"close": "anna"}) + "\n")
        crowd.stdin.flush()
        while seen[-1].get("wanted") != 1:
            seen.append(json.loads(crowd.stdout.readline()))
        crowd.stdin.close()
        assert crowd.wait(10) == 0
