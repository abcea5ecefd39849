"""Whether every query of the dashboard and of the rules finds something in a Prometheus that scrapes a service."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from scripts.monitoring.grafana import ROWS
from scripts.monitoring.promql import selectors, with_values
from scripts.monitoring.server import MONITORING, Prometheus

EMPTY = {
    "ray_image_serve_gpu_memory_bytes": "only replicas with a GPU report it",
    "ray_image_serve_version_refused_total": "no version was refused",
    "ray_serve_health_check_failures_total": "no health check failed",
}
"""Metrics that alerts read and a healthy service on CPUs does not have, and why."""
_NOT_ANSWERED = "nothing but answers and the client's own faults"
_OUTCOME = re.compile(r'(outcome|result)=~?"([^"]*)",?')


@dataclass(frozen=True, slots=True)
class Question:
    """A query that should find something.

    Attributes:
        where: panel or rule it is from.
        expr: PromQL that Prometheus takes as it is.
        empty_because: why it may find nothing; "" where it must not.
    """

    where: str
    expr: str
    empty_because: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """How many series a question found."""

    question: Question
    series: int

    @property
    def good(self) -> bool:
        return self.series > 0 or bool(self.question.empty_because)


def load_dashboard() -> dict[str, Any]:
    """As it is checked in."""
    return dict(json.loads((MONITORING / "grafana-dashboard.json").read_text()))


def load_rules() -> list[dict[str, Any]]:
    """Of all groups of configs/monitoring/rules.yml."""
    groups = yaml.safe_load((MONITORING / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels(dashboard: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every panel, rows and those inside of folded rows among them."""
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", ())


def questions() -> list[Question]:
    """All of dashboard and rules."""
    # What Grafana takes for a Prometheus that scrapes every 15 s, its default; and longer than Ray needs to export.
    values = {"application": ".*", "model": ".*", "__rate_interval": "1m"}
    asked = [Question("the service is scraped", 'up{job="image-serve"} == 1'), *_of_variables(values)]
    return [*asked, *_of_panels(values), *_of_rules(load_rules())]


def _of_variables(values: Mapping[str, str]) -> Iterator[Question]:
    for variable in load_dashboard()["templating"]["list"]:
        if found := re.fullmatch(r"label_values\((.+), (\w+)\)", variable.get("definition", "")):
            yield Question(f"variable {variable['name']}", with_values(f"count by ({found[2]}) ({found[1]})", values))


def _of_panels(values: Mapping[str, str]) -> Iterator[Question]:
    reasons = {query.expr: query.empty_because for row in ROWS for panel in row.panels for query in panel.queries}
    for panel in panels(load_dashboard()):
        for target in panel.get("targets", ()):
            yield Question(f"panel {panel['title']}", with_values(target["expr"], values), reasons[target["expr"]])


def _of_rules(rules: Iterable[Mapping[str, Any]]) -> Iterator[Question]:
    """Recorded figures as they are; of an alert, which should not fire, all that it reads."""
    for rule in rules:
        if "record" in rule:
            result = rule.get("labels", {}).get("result", "answered")
            yield Question(f"rule {rule['record']}", rule["expr"], "" if result == "answered" else _NOT_ANSWERED)
            continue
        for metric, matchers in dict.fromkeys(selectors(rule["expr"])):
            # Which errors there are is the clients' affair; that outcomes are counted at all is not.
            kept = _OUTCOME.sub("", matchers)
            yield Question(f"alert {rule['alert']}", f"{metric}{{{kept}}}" if kept else metric, EMPTY.get(metric, ""))


def ask(prometheus: Prometheus, asked: Iterable[Question]) -> list[Answer]:
    """Once."""
    return [Answer(one, len(prometheus.values(one.expr))) for one in asked]


def ask_until_good(prometheus: Prometheus, asked: Iterable[Question], timeout_s: float) -> list[Answer]:
    """Again and again those that found nothing, until all did or the time is up."""
    until_s = time.monotonic() + timeout_s
    answers = {one: Answer(one, 0) for one in asked}
    while True:
        answers |= {one.question: one for one in ask(prometheus, [q for q, a in answers.items() if not a.series])}
        if all(one.good for one in answers.values()) or time.monotonic() > until_s:
            return list(answers.values())
        time.sleep(0.5)


def firing(prometheus: Prometheus) -> list[str]:
    """Names of the alerts that fire."""
    return sorted({labels["alertname"] for labels, _ in prometheus.values('ALERTS{alertstate="firing"}')})


def table(answers: Iterable[Answer]) -> str:
    """One line for each answer, those that found nothing marked."""
    lines = []
    for one in answers:
        note = "" if one.series else f"   {one.question.empty_because or 'NOTHING FOUND'}"
        lines.append(f"{one.series:6d}  {one.question.where:46s}  {' '.join(one.question.expr.split())}{note}")
    return "\n".join([f"series  {'where':46s}  query", *lines])
