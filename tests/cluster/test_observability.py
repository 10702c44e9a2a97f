"""The rules and the dashboard: valid, and about metrics that exist. tests/serve/test_haproxy.py compares with a scrape."""

import ast
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import ray
import yaml

from .expressions import FOLDER, NOT_ALWAYS, family, panel_expressions, rule_expressions, selectors

ROOT = Path(__file__).parents[2]
RAY = Path(ray.__file__).parent


def promtool(*arguments: str) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_rules_and_the_configuration(tmp_path: Path) -> None:
    promtool("check", "rules", "cluster/observability/rules.yaml")
    # It looks at the files of the nodes too, and on this machine they may be links to a Ray that is gone.
    here = (FOLDER / "prometheus.yaml").read_text().replace("/tmp/ray/", f"{tmp_path}/")
    (tmp_path / "prometheus.yaml").write_text(here)
    shutil.copy(FOLDER / "rules.yaml", tmp_path)
    promtool("check", "config", str(tmp_path / "prometheus.yaml"))


def test_the_alerts_speak_when_they_should() -> None:
    promtool("test", "rules", "tests/cluster/alerts.yaml")


def test_prometheus_takes_the_expressions_of_the_dashboard(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{index}", "expr": e} for index, e in enumerate(panel_expressions())]
    path = tmp_path / "panels.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", str(path))


def test_every_alert_is_tested() -> None:
    groups = yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"]
    alerts = [rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule]
    tested = yaml.safe_load((ROOT / "tests/cluster/alerts.yaml").read_text())["tests"]
    for test in tested:
        assert [case["alertname"] for case in test["alert_rule_test"]] == alerts


def our_metrics() -> set[str]:
    """The names that serve_app/observability.py exports, as Ray shows them."""
    kinds = {"Counter", "Gauge", "Histogram"}
    calls = [
        n
        for n in ast.walk(ast.parse((ROOT / "serve_app/observability.py").read_text()))
        if isinstance(n, ast.Call)
    ]
    first = [call.args[0] for call in calls if isinstance(call.func, ast.Name) and call.func.id in kinds]
    return {f"ray_{argument.value}" for argument in first if isinstance(argument, ast.Constant)}


def rays_metrics() -> set[str]:
    """Every name in quotation marks in Serve and in the reporter of nodes: a superset of their metrics."""
    sources = [*(RAY / "serve").rglob("*.py"), RAY / "dashboard/modules/reporter/reporter_agent.py"]
    return {
        f"ray_{name}"
        for path in sources
        for name in re.findall(r'"((?:serve|node)_[a-z0-9_]+)"', path.read_text())
    }


def test_every_metric_is_one_of_ours_or_of_rays() -> None:
    ours, theirs = our_metrics(), rays_metrics()
    assert len(ours) >= 6
    for metric in selectors():
        if metric.startswith("haproxy_"):
            continue  # of HAProxy's own exporter; seen in the scrape
        known = ours if metric.startswith("ray_voice_serve_") else theirs
        assert {metric, family(metric)} & known, metric


def test_what_is_measured_is_shown() -> None:
    assert {family(metric) for metric in selectors()} >= our_metrics()
    assert selectors().keys() >= NOT_ALWAYS, "an exception that nothing asks for"


def test_the_panels_do_not_overlap_and_use_one_data_source() -> None:
    document = json.loads((FOLDER / "dashboard.json").read_text())
    assert len({panel["id"] for panel in document["panels"]}) == len(document["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in document["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
    [variable] = document["templating"]["list"]
    assert variable["name"] == "datasource"


@pytest.mark.parametrize(
    "topic",
    [
        "sessions",
        "turn_stage_seconds",
        "interrupted",
        "queued_queries",
        "replica_healthy",
        "gpus_utilization",
    ],
)
def test_the_dashboard_shows_what_an_operator_looks_for(topic: str) -> None:
    assert any(topic in expression for expression in panel_expressions())
    assert rule_expressions()
