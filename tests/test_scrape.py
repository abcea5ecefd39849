from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve_app.scrape import merged, scrape

NODE = """# HELP ray_image_serve_pictures_total Pictures by outcome.
# TYPE ray_image_serve_pictures_total counter
ray_image_serve_pictures_total{{model="cats",outcome="ok",NodeAddress="{node}"}} {count}
# HELP ray_image_serve_request_ms Milliseconds.
# TYPE ray_image_serve_request_ms histogram
ray_image_serve_request_ms_bucket{{le="1",NodeAddress="{node}"}} 1
ray_image_serve_request_ms_bucket{{le="+Inf",NodeAddress="{node}"}} 2
ray_image_serve_request_ms_count{{NodeAddress="{node}"}} 2
ray_image_serve_request_ms_sum{{NodeAddress="{node}"}} 9
# TYPE ray_node_cpu_utilization gauge
ray_node_cpu_utilization 50
"""


def page(node: str, count: int) -> str:
    return NODE.format(node=node, count=count)


def values(text: bytes) -> dict[tuple[str, str], float]:
    return {
        (sample.name, sample.labels.get("NodeAddress", "") + sample.labels.get("le", "")): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_several_nodes_are_one_page_of_our_metrics() -> None:
    text = merged([page("a", 3), page("b", 4)])
    found = values(text)
    assert found["ray_image_serve_pictures_total", "a"] == 3
    assert found["ray_image_serve_pictures_total", "b"] == 4
    assert found["ray_image_serve_request_ms_bucket", "b+Inf"] == 2
    assert not any(name.startswith("ray_node") for name, _ in found)
    assert text.count(b"# TYPE ray_image_serve_pictures_total counter") == 1


@contextmanager
def exporter(text: str, status: int = 200) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/metrics"
        finally:
            server.shutdown()
            thread.join()


async def test_nodes_that_do_not_answer_are_left_out() -> None:
    with exporter(page("a", 3)) as there, exporter("no", 500) as broken:
        found = values(await scrape([there, broken, "http://127.0.0.1:9/metrics"]))
    assert found["ray_image_serve_pictures_total", "a"] == 3


@pytest.mark.parametrize("addresses", [[], ["http://127.0.0.1:9/metrics"]])
async def test_where_none_answers_it_says_so(addresses: list[str]) -> None:
    with pytest.raises(httpx.HTTPError, match="exporters"):
        await scrape(addresses)
