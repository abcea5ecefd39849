#!/usr/bin/env python
"""Starts a Prometheus beside a running service and asks it every query of dashboard and rules.

Send the service some pictures meanwhile: figures of pictures are there only where there were some. Exit code 1 where
a query finds nothing that should.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from scripts.monitoring.check import ask_until_good, firing, questions, table
from scripts.monitoring.server import NoPrometheus, configuration, running_prometheus


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="http://localhost:8000", help="of the service (%(default)s)")
    parser.add_argument("--interval-s", type=float, default=2, help="between scrapes (%(default)s)")
    parser.add_argument("--timeout-s", type=float, default=60, help="to wait until all is there (%(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            with running_prometheus(configuration(options.address, options.interval_s), Path(folder)) as prometheus:
                answers = ask_until_good(prometheus, questions(), options.timeout_s)
                alerts = firing(prometheus)
        except NoPrometheus as error:
            print(error, file=sys.stderr)
            return 2
    print(table(answers))
    empty = sum(not one.good for one in answers)
    print(f"{len(answers)} queries, {empty} without data that should have some; firing: {', '.join(alerts) or 'none'}")
    return 1 if empty else 0


if __name__ == "__main__":
    raise SystemExit(main())
