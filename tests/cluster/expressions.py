"""What the rules and the dashboard ask Prometheus for: every expression, and the metrics and labels that it names."""

import json
import re
from pathlib import Path

import yaml

FOLDER = Path(__file__).parents[2] / "cluster/observability"

NOT_ALWAYS = frozenset(
    {
        "ray_voice_serve_resumed_total",  # nobody lost a socket
        "ray_voice_serve_refused_total",  # until a caller is refused
        "ray_voice_serve_drafts_total",  # until an answer was begun at a pause
        "ray_voice_serve_draft_tokens_wasted_total",
        "ray_voice_serve_prefills_total",  # until a prompt was read ahead
        "ray_serve_deployment_error_counter_total",  # until a replica fails
        "ray_serve_autoscaling_desired_replicas",  # with autoscaling
        "ray_node_gpus_utilization",  # with a GPU
        "ray_node_gram_used",
        "ray_node_gram_available",
    }
)
"""Metrics that a healthy application on a machine without a GPU does not show."""

_METRIC = re.compile(r"\b((?:ray|haproxy)_[a-z0-9_]+)\s*(\{[^}]*\})?")
_GROUPING = re.compile(r"\b(?:by|ignoring|on)\s*\(([^)]*)\)")


def rule_expressions() -> list[str]:
    groups = yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


def panel_expressions() -> list[str]:
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def selectors() -> dict[str, set[str]]:
    """Each metric that is asked for, with the labels that it is asked for by (selected, or grouped)."""
    found: dict[str, set[str]] = {}
    for expression in [*rule_expressions(), *panel_expressions()]:
        grouped = {name.strip() for names in _GROUPING.findall(expression) for name in names.split(",")} - {
            ""
        }
        for metric, braces in _METRIC.findall(expression):
            selected = set(re.findall(r"(\w+)\s*[=!]", braces))
            # Prometheus adds `instance` itself; quotients group both sides, so each metric has all the labels.
            found.setdefault(metric, set()).update(selected | (grouped - {"instance"}))
    return found


def family(metric: str) -> str:
    """The metric without what the exposition adds for its type."""
    return re.sub(r"_(bucket|sum|count|total)$", "", metric)
