from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.document_metrics import table, unit
from scripts.local_service import ROOT
from scripts.monitoring.check import EMPTY, load_dashboard, load_rules, panels, questions
from scripts.monitoring.grafana import COLUMNS, ROWS, dashboard_text
from scripts.monitoring.promql import outcomes, selectors, with_values
from scripts.monitoring.server import MONITORING, configuration
from serve_app.errors import fault_of_codes
from serve_app.metric_names import CONTROLLER_METRICS, REPLICA_METRICS, SERVE_TAGS, MetricName

README = (ROOT / "README.md").read_text()
METRICS = (*REPLICA_METRICS, *CONTROLLER_METRICS)
DATASOURCE = "${datasource}"


def series_of(metric: MetricName) -> dict[str, set[str]]:
    """Names that Prometheus has of a metric, and the labels of each."""
    labels = set(metric.tags) | (set(SERVE_TAGS) if metric in REPLICA_METRICS else set())
    name = metric.scraped_name
    if metric.kind != "histogram":
        return {name: labels}
    return {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}


OURS = {name: labels for metric in METRICS for name, labels in series_of(metric).items()}
RECORDED = {rule["record"] for rule in load_rules() if "record" in rule}
ALERTS = [rule for rule in load_rules() if "alert" in rule]


def drawn() -> list[dict[str, Any]]:
    return [panel for panel in panels(load_dashboard()) if panel["type"] != "row"]


def expressions() -> list[str]:
    shown = [target["expr"] for panel in drawn() for target in panel["targets"]]
    return [*shown, *(rule["expr"] for rule in load_rules())]


def rays_source() -> str:
    """Of all that names Ray's metrics; read, not imported."""
    spec = importlib.util.find_spec("ray")
    assert spec
    assert spec.origin
    ray = Path(spec.origin).parent
    files: Iterable[Path] = [*(ray / "serve").rglob("*.py"), *(ray / "dashboard/modules/reporter").glob("*.py")]
    # Some names are made by protocol: f"serve_num_{protocol}_requests".
    return re.sub(r"\{[^{}]*\}", "http", "\n".join(path.read_text() for path in files))


def test_the_readmes_table_of_metrics_is_the_list() -> None:
    assert table() in README, "run scripts/document_metrics.py and paste its table"


def test_every_metric_has_a_unit_and_a_line_of_its_own() -> None:
    assert all(unit(metric) and metric.description.endswith(".") for metric in METRICS)
    assert len({metric.description for metric in METRICS}) == len(METRICS) == len({one.scraped_name for one in METRICS})


def test_every_metric_that_is_asked_for_exists() -> None:
    rays = rays_source()
    for expr in expressions():
        for name, _ in selectors(expr):
            if ":" in name:
                assert name in RECORDED, expr
            elif name not in OURS and name != "up":
                metric = re.sub(r"_(bucket|sum|count|total)$", "", name.removeprefix("ray_"))
                known = f'"{metric}"' in rays or f'"{metric}_total"' in rays
                assert known, f"{name} is neither ours nor Ray's: {expr}"


def test_every_metric_of_ours_is_on_the_dashboard() -> None:
    shown = {name for panel in drawn() for target in panel["targets"] for name, _ in selectors(target["expr"])}
    assert [metric.name for metric in METRICS if not shown & set(series_of(metric))] == []


def test_labels_that_are_matched_are_labels_of_the_metric() -> None:
    seen = 0
    for expr in expressions():
        for name, matchers in selectors(expr):
            if name in OURS:
                used = set(re.findall(r"(\w+)(?==~?\"|!=)", matchers))
                assert used <= OURS[name], expr
                seen += bool(used)
    assert seen > 20


def test_labels_that_are_kept_are_labels_of_the_metric() -> None:
    seen = 0
    for expr in expressions():
        read = [OURS.get(name) for name, _ in selectors(expr)]
        if None in read:  # Ray's, or recorded
            continue
        had = set().union(*(labels for labels in read if labels))
        for kept in re.findall(r"(?:by|on|ignoring) \(([^()]*)\)", expr):
            assert set(kept.split(", ")) <= had, expr
            seen += 1
    assert seen > 30


def test_outcomes_follow_the_status_of_the_answer() -> None:
    kinds = {code: kind for kind, codes in outcomes().items() for code in codes.split("|")}
    assert kinds.pop("ok") == "answered"
    assert kinds == fault_of_codes()
    assert kinds["overloaded"] == "shed"
    assert kinds["broken_picture"] == kinds["unsupported"] == "rejected"
    assert kinds["inference_failed"] == kinds["deadline_exceeded"] == "failed"


@pytest.fixture
def promtool() -> str:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    return program


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "--lint=all", "--lint-fatal", "rules.yml"),
        ("test", "rules", "rules_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_takes_the_files(promtool: str, arguments: tuple[str, ...]) -> None:
    done = subprocess.run([promtool, *arguments], cwd=MONITORING, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_recorded_results_are_the_outcomes_of_the_code() -> None:
    results = {
        rule["labels"]["result"]: rule["expr"]
        for rule in load_rules()
        if rule.get("record") == "model:image_serve_results:rate5m"
    }
    found = {result: re.findall(r'outcome=~?"([^"]+)"', expr)[0] for result, expr in results.items()}
    assert found == outcomes()


def test_every_alert_is_fired_by_a_test_and_explained_in_the_readme() -> None:
    tests = yaml.safe_load((MONITORING / "rules_test.yml").read_text())["tests"]
    fired = " ".join(
        sample["labels"] for test in tests for query in test["promql_expr_test"] for sample in query["exp_samples"]
    )
    assert len(ALERTS) >= 12
    for rule in ALERTS:
        assert f'alertname="{rule["alert"]}"' in fired, rule["alert"]
        assert f"`{rule['alert']}`" in README, rule["alert"]


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_alerts_say_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    said = rule["annotations"]
    assert set(said) == {"summary", "description", "runbook"}
    assert len(said["description"]) > 80
    file, _, anchor = said["runbook"].partition("#")
    headings = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    assert file == "README.md"
    assert anchor in [heading.lower().replace(" ", "-") for heading in headings]


def test_no_two_alerts_say_the_same() -> None:
    for key in ("summary", "description"):
        assert max(Counter(rule["annotations"][key] for rule in ALERTS).values()) == 1


def test_what_two_jobs_would_both_bring_is_counted_once() -> None:
    jobs = {
        job["job_name"]: job for job in yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    }
    [drop] = jobs["ray"]["metric_relabel_configs"]
    assert drop["action"] == "drop"
    asked = {name for expr in expressions() for name, _ in selectors(expr) if name.startswith("ray_")}
    from_nodes = {name for name in asked if not re.fullmatch(drop["regex"], name)}
    assert from_nodes == {"ray_node_gpus_utilization"}
    assert asked > from_nodes


def test_a_check_asks_one_service_with_the_rules_that_are_checked_in() -> None:
    config = configuration("http://127.0.0.1:4711", 0.5)
    assert config["global"]["scrape_interval"] == config["global"]["evaluation_interval"] == "500ms"
    assert [path.exists() for path in map(Path, config["rule_files"])] == [True]
    [job] = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["127.0.0.1:4711"]}]


def test_the_dashboard_is_what_the_script_makes() -> None:
    checked_in = (MONITORING / "grafana-dashboard.json").read_text()
    assert checked_in == dashboard_text(), "run scripts/make_dashboard.py"


def test_panels_are_numbered_and_side_by_side() -> None:
    everything = list(panels(load_dashboard()))
    assert len({panel["id"] for panel in everything}) == len(everything) > len(ROWS)
    taken: dict[tuple[int, int], str] = {}
    for panel in everything:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= COLUMNS
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]


def test_every_panel_names_its_unit_and_says_what_it_shows() -> None:
    for panel in drawn():
        unit_at = panel["options"]["yAxis"] if panel["type"] == "heatmap" else panel["fieldConfig"]["defaults"]
        assert unit_at["unit"], panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_every_datasource_is_the_variable() -> None:
    variables = load_dashboard()["templating"]["list"]
    assert variables[0]["name"] == "datasource"
    asked = [*variables[1:], *drawn(), *(target for panel in drawn() for target in panel["targets"])]
    assert {one["datasource"]["uid"] for one in asked} == {DATASOURCE}


def test_variables_that_are_used_are_defined() -> None:
    defined = {variable["name"] for variable in load_dashboard()["templating"]["list"]} | {"__rate_interval"}
    for panel in drawn():
        for target in panel["targets"]:
            assert set(re.findall(r"\$\{?(\w+)", target["expr"])) <= defined, target["expr"]


def test_a_question_for_each_query_and_each_rule() -> None:
    asked = questions()
    assert sum(one.where.startswith("panel ") for one in asked) == sum(len(panel["targets"]) for panel in drawn())
    assert {one.where.removeprefix("alert ") for one in asked if one.where.startswith("alert ")} == {
        rule["alert"] for rule in ALERTS
    }
    assert not [one for one in asked if "$" in one.expr]
    assert sum(not one.empty_because for one in asked) > 60
    assert set(EMPTY) <= set(OURS) | {"ray_serve_health_check_failures_total"}


def test_what_an_expression_reads() -> None:
    read = selectors('sum by (le) (rate(ray_x_bucket{a="b|c",le=~"1(.0)?"}[5m])) / m:x:rate5m and up == 1')
    assert read == [("ray_x_bucket", 'a="b|c",le=~"1(.0)?"'), ("m:x:rate5m", ""), ("up", "")]


def test_a_variable_without_a_value_is_an_error() -> None:
    assert with_values("x[$__rate_interval] $a", {"__rate_interval": "8s", "a": "1"}) == "x[8s] 1"
    with pytest.raises(ValueError, match=r"\$model"):
        with_values('x{model="$model"}', {"a": "1"})
