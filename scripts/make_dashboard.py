#!/usr/bin/env python
"""Writes configs/monitoring/grafana-dashboard.json from scripts/monitoring. A test compares the two."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from scripts.local_service import ROOT
from scripts.monitoring.grafana import dashboard_text

DASHBOARD = ROOT / "configs" / "monitoring" / "grafana-dashboard.json"

if __name__ == "__main__":
    DASHBOARD.write_text(dashboard_text())
    print(f"{DASHBOARD.relative_to(ROOT)} is written")
