"""`python -m scripts.autoscale.sampler ADDRESS APPLICATION`: replicas of a running service as JSON lines, until killed.

A process of its own: Ray reads how it is to authenticate once, when it is imported.
"""

from __future__ import annotations

import json
import logging
import sys
import time

SAMPLE_S = 0.2


def main(address: str, application: str) -> None:
    import ray
    from ray import serve

    logging.disable(logging.CRITICAL)
    ray.init(address=address, namespace="serve", log_to_driver=False, logging_level="ERROR")
    while True:
        deployments = serve.status().applications[application].deployments
        states = {name: dict(one.replica_states) for name, one in deployments.items()}
        running = {name: state.get("RUNNING", 0) for name, state in states.items()}
        starting = {name: state.get("STARTING", 0) for name, state in states.items()}
        print(json.dumps([time.time(), running, starting]), flush=True)
        time.sleep(SAMPLE_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
