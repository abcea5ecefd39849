"""The dashboard as Grafana 11 and later import it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from scripts.monitoring.panels_pictures import BATCHES_ROW, GLANCE, LATENCY, STAGES, TRAFFIC
from scripts.monitoring.panels_replicas import GPU, RAY_SERVE, SCALING, VERSIONS
from scripts.monitoring.promql import PICTURES
from scripts.monitoring.shown import Panel, Row

ROWS: tuple[Row, ...] = (GLANCE, TRAFFIC, LATENCY, STAGES, BATCHES_ROW, SCALING, VERSIONS, GPU, RAY_SERVE)

SCHEMA_VERSION = 39
"""Of Grafana 11.0; later ones bring it up to theirs on import."""
COLUMNS = 24
HEIGHT = {"timeseries": 8, "stat": 4, "heatmap": 8}
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard_text() -> str:
    """The file as it is checked in."""
    return json.dumps(dashboard(), indent=1) + "\n"


def dashboard() -> dict[str, Any]:
    """All of it, JSON-ready."""
    return {
        "uid": "image-serve",
        "title": "Image Serve",
        "description": "Pictures, latency, stages, batches, replicas and GPUs. Made by scripts/make_dashboard.py.",
        "tags": ["image-serve", "ray"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "",
        "fiscalYearStartMonth": 0,
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": [_data_source(), _labels("application"), _labels("model")]},
        "panels": list(_placed(ROWS)),
    }


def _data_source() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "options": [],
        "refresh": 1,
        "regex": "",
        "skipUrlSync": False,
    }


def _labels(label: str) -> dict[str, Any]:
    """A variable with the values of a label; the model's choices follow the application's."""
    within = "" if label == "application" else '{application=~"$application"}'
    query = f"label_values({PICTURES}{within}, {label})"
    return {
        "name": label,
        "label": label.capitalize(),
        "type": "query",
        "datasource": SOURCE,
        "definition": query,
        "query": {"query": query, "refId": f"Variable-{label}"},
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "hide": 0,
        "includeAll": True,
        "multi": True,
        "options": [],
        "refresh": 2,
        "regex": "",
        "skipUrlSync": False,
        "sort": 1,
    }


def _placed(rows: tuple[Row, ...]) -> Iterator[dict[str, Any]]:
    """Rows and panels one below the other, numbered; panels of a folded row are inside it."""
    number, top = 0, 0
    for row in rows:
        number += 1
        heading = _row(row, number, top)
        top += 1
        left, lowest, inside = 0, top, []
        for panel in row.panels:
            number += 1
            if left + panel.width > COLUMNS:
                left, top = 0, lowest
            inside.append(_panel(panel, number, left, top))
            left, lowest = left + panel.width, max(lowest, top + HEIGHT[panel.kind])
        top = lowest
        if row.folded:
            yield heading | {"panels": inside}
        else:
            yield heading
            yield from inside


def _row(row: Row, number: int, top: int) -> dict[str, Any]:
    place = {"h": 1, "w": COLUMNS, "x": 0, "y": top}
    return {"id": number, "type": "row", "title": row.title, "collapsed": row.folded, "gridPos": place, "panels": []}


def _panel(panel: Panel, number: int, left: int, top: int) -> dict[str, Any]:
    queries = [
        {
            "datasource": SOURCE,
            "editorMode": "code",
            "expr": query.expr,
            "format": "heatmap" if panel.kind == "heatmap" else "time_series",
            "legendFormat": query.legend or panel.title,
            "range": True,
            "refId": chr(ord("A") + place),
        }
        for place, query in enumerate(panel.queries)
    ]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": SOURCE,
        "gridPos": {"h": HEIGHT[panel.kind], "w": panel.width, "x": left, "y": top},
        "targets": queries,
        **{"timeseries": _timeseries, "stat": _stat, "heatmap": _heatmap}[panel.kind](panel),
    }


def _steps(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.threshold is not None:
        steps.append({"color": "red", "value": panel.threshold})
    return {"mode": "absolute", "steps": steps}


def _timeseries(panel: Panel) -> dict[str, Any]:
    drawn = {
        "drawStyle": "line",
        "lineInterpolation": "linear",
        "lineWidth": 1,
        "fillOpacity": 25 if panel.stacked else 5,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"group": "A", "mode": "normal" if panel.stacked else "none"},
        "thresholdsStyle": {"mode": "off" if panel.threshold is None else "dashed"},
    }
    return {
        "fieldConfig": {
            "defaults": {
                "color": {"mode": "palette-classic"},
                "custom": drawn,
                "min": 0,
                "thresholds": _steps(panel),
                "unit": panel.unit,
            },
            "overrides": [],
        },
        "options": {
            "legend": {
                "calcs": ["lastNotNull", "max"],
                "displayMode": "table",
                "placement": "bottom",
                "showLegend": True,
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def _stat(panel: Panel) -> dict[str, Any]:
    return {
        "fieldConfig": {
            "defaults": {"color": {"mode": "thresholds"}, "thresholds": _steps(panel), "unit": panel.unit},
            "overrides": [],
        },
        "options": {
            "colorMode": "value",
            "graphMode": "area",
            "justifyMode": "auto",
            "orientation": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "textMode": "value",
        },
    }


def _heatmap(panel: Panel) -> dict[str, Any]:
    return {
        "fieldConfig": {"defaults": {"custom": {}}, "overrides": []},
        "options": {
            "calculate": False,
            "cellGap": 1,
            "cellValues": {"unit": "cps"},
            "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "fill": "dark-orange", "exponent": 0.5},
            "exemplars": {"color": "rgba(255,0,255,0.7)"},
            "filterValues": {"le": 1e-9},
            "legend": {"show": True},
            "rowsFrame": {"layout": "auto"},
            "tooltip": {"mode": "single", "showColorScale": False, "yHistogram": False},
            "yAxis": {"axisPlacement": "left", "reverse": False, "unit": panel.unit},
        },
    }
