"""Peer: LitServe with OpenVINO, WORKERS (2) inference workers and API_SERVERS (as many) HTTP processes.

    ENGINE=.../model.xml PORT=8104 python litserve_ov.py

POST /predict, the picture as the body. MAX_BATCH (8) pictures a batch, which waits WAIT_MS (3) for more.
DECODE=own|ours, see _decode.py. Annotations are read by FastAPI, so they are not postponed in this file.

The body is raw because that is faster. LitServe reads the annotation of `decode_request`: for `Request` it parses JSON
or a form, and a form is parsed in Python and sent to the worker as a pickled UploadFile. For anything else it is
FastAPI that fills the argument, and the worker gets exactly that: the bytes.
"""

import os
from typing import Annotated, Any

import litserve as ls
from _decode import make_decode
from _engine import ENGINE, MAX_BATCH, WAIT_MS, Answer, Engine
from fastapi import Depends, Request

WORKERS = int(os.environ.get("WORKERS", "2"))
API_SERVERS = int(os.environ.get("API_SERVERS", WORKERS))


async def raw_body(request: Request) -> bytes:
    return await request.body()


class Api(ls.LitAPI):
    def setup(self, device: str) -> None:
        self.decode = make_decode(ENGINE.parent)
        self.engine = Engine()

    async def authorize(self) -> None:
        """Nobody is refused. LitServe's own default is not async, and costs a thread switch on every request."""

    def decode_request(self, request: Annotated[bytes, Depends(raw_body)]) -> Any:
        return self.decode(request)

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, pictures: list[Any]) -> list[Answer]:
        return self.engine.classify(pictures)

    def unbatch(self, output: list[Answer]) -> list[Answer]:
        return output

    # No return annotation: FastAPI would validate every answer against it.
    def encode_response(self, output: Answer):
        return {"predictions": output}


if __name__ == "__main__":
    # fast_queue: ZeroMQ for answers, which LitServe advises from 100 requests per second on.
    server = ls.LitServer(
        Api(max_batch_size=MAX_BATCH, batch_timeout=WAIT_MS / 1e3),
        accelerator="cpu",
        workers_per_device=WORKERS,
        fast_queue=True,
    )
    server.run(
        host="127.0.0.1",
        port=int(os.environ.get("PORT", "8104")),
        num_api_servers=API_SERVERS,
        generate_client_file=False,
        log_level="warning",
    )
