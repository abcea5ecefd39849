"""Peer: mosec (Rust front, Python workers) with OpenVINO.

    ENGINE=.../model.xml LAYOUT=fused python mosec_ov.py --address 127.0.0.1 --port 8103 --timeout 30000

POST /inference, the picture as the body. LAYOUT=fused: each of NINF (2) workers decodes and infers. LAYOUT=split: NPRE
(1) workers decode, NINF (1) infer. MAX_BATCH (8, at least 2) pictures a batch, which waits WAIT_MS (3) for more.
DECODE=own|ours, see _decode.py.
"""

import os
from typing import Any

import numpy as np
import orjson
from _decode import make_decode
from _engine import ENGINE, MAX_BATCH, WAIT_MS, Answer, Engine
from mosec import Server, Worker

FUSED = os.environ.get("LAYOUT", "fused") == "fused"


class Decode(Worker):
    """First stage of `split`. Pixels go on as they are: mosec would pickle them, which copies once more."""

    def __init__(self) -> None:
        super().__init__()
        self.decode = make_decode(ENGINE.parent)

    def deserialize(self, data: bytes) -> bytes:
        return bytes(data)

    def forward(self, data: bytes) -> Any:
        return self.decode(data)

    def serialize_ipc(self, data: Any) -> bytes:
        return data.tobytes()


class Classify(Worker):
    """Second stage of `split`."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = Engine()

    def deserialize_ipc(self, data: bytes) -> Any:
        return np.frombuffer(data, np.uint8).reshape(224, 224, 3)

    def forward(self, data: list[Any]) -> list[Answer]:
        return self.engine.classify(data)

    def serialize(self, data: Answer) -> bytes:
        return orjson.dumps(data)


class Fused(Classify):
    """Both in one worker: nothing is passed on."""

    def __init__(self) -> None:
        super().__init__()
        self.decode = make_decode(ENGINE.parent)

    def deserialize(self, data: bytes) -> bytes:
        return bytes(data)

    def forward(self, data: list[bytes]) -> list[Answer]:
        return self.engine.classify([self.decode(body) for body in data])


if __name__ == "__main__":
    server = Server()
    workers = int(os.environ.get("NINF", "2" if FUSED else "1"))
    if not FUSED:
        server.append_worker(Decode, num=int(os.environ.get("NPRE", "1")))
    server.append_worker(Fused if FUSED else Classify, num=workers, max_batch_size=MAX_BATCH, max_wait_time=WAIT_MS)
    server.run()
