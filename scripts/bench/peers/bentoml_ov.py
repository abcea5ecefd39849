"""Peer: BentoML 1.4 with OpenVINO, one service of WORKERS (2) processes, adaptive batching.

    ENGINE=.../model.xml BENTOML_DO_NOT_TRACK=True bentoml serve bentoml_ov:Classifier --host 127.0.0.1 --port 8105

POST /predict, the picture as the body. At most MAX_BATCH (8) pictures a batch; how long it waits for more, BentoML
learns by itself. DECODE=own|ours, see _decode.py.

Why an input spec of its own: a batched API takes a list, and of BentoML's own inputs `list[Path]` is a form that is
written to a temporary file per picture, `list[PIL.Image.Image]` a form that is decoded by Pillow, and an argument that
is the raw body builds its JSON schema anew on every request. `from_http_request` skips all of that, and the content
type of the answer is given because BentoML would look it up in such a schema, too.
"""

import os
from typing import Annotated

import bentoml
from _decode import make_decode
from _engine import ENGINE, MAX_BATCH, Answer, Engine
from bentoml.validators import ContentType

WORKERS = int(os.environ.get("WORKERS", "2"))
Answers = Annotated[list[list[dict[str, float]]], ContentType("application/json")]


class RawPicture(bentoml.IODescriptor):
    """A batch of one: the body."""

    bodies: list[bytes]

    @classmethod
    async def from_http_request(cls, request, serde):
        return cls.model_construct(bodies=[await request.body()])


@bentoml.service(
    workers=WORKERS,
    traffic={"timeout": 60},
    logging={"access": {"enabled": False}},  # one line per request otherwise
)
class Classifier:
    def __init__(self) -> None:
        self.decode = make_decode(ENGINE.parent)
        self.engine = Engine()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=60_000, input_spec=RawPicture)
    def predict(self, bodies: list[bytes]) -> Answers:
        answers: list[Answer] = self.engine.classify([self.decode(body) for body in bodies])
        return answers
