"""locust itself: a master and a worker, callers on the real application, and what its statistics say of them."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.application import ROOT, Application, free_port

pytestmark = pytest.mark.ray
CALLERS, SECONDS = 4, 30


def locust(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    log = (folder / f"{options[0].strip('-')}.log").open("wb")
    with log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)


def test_a_master_counts_what_the_callers_of_its_worker_see(
    app: Application, shared_audio: Path, tmp_path: Path
):
    pytest.importorskip("psutil", reason="locust is not installed (extra: load)")
    port = str(free_port())
    master = locust(
        tmp_path,
        *(
            "--master",
            "--master-bind-port",
            port,
            "--expect-workers",
            "1",
            "--headless",
            "--host",
            app.realtime,
        ),
        *("-u", str(CALLERS), "-r", "4", "-t", f"{SECONDS}s", "--csv", str(tmp_path / "locust")),
        *(
            "--audio",
            str(shared_audio / "digits"),
            "--think-min",
            "0.2",
            "--think-max",
            "0.8",
            "--barge-ins",
            "1",
        ),
    )
    worker = locust(tmp_path, "--worker", "--master-port", port)
    try:
        master.wait(SECONDS + 90)
        worker.wait(30)
    finally:
        master.kill()
        worker.kill()
        master.wait()
        worker.wait()
    logs = (tmp_path / "master.log").read_text() + (tmp_path / "worker.log").read_text()
    assert master.returncode in (0, 1), logs
    with (tmp_path / "locust_stats.csv").open() as file:
        rows = {(row["Type"], row["Name"]): row for row in csv.DictReader(file)}
    assert int(rows["session", "session opened"]["Request Count"]) == CALLERS, logs
    turn = rows["turn", "turn"]
    assert int(turn["Request Count"]) - int(turn["Failure Count"]) >= 2 * CALLERS, logs
    assert float(turn["50%"]) >= 400, "at least the silence that ends a turn, give or take a late frame"
    assert int(rows["barge-in", "barge-in stop"]["Request Count"]) >= CALLERS
    assert rows["", "Aggregated"]["Request Count"] == turn["Request Count"], "the charts are of turns"
    assert ("stage", "turn 1: endpointing") in rows
    assert int(rows["client", "frame sent late"]["Request Count"]) >= SECONDS / 2
    assert ("barge-in", "sound after speech_started") not in rows
