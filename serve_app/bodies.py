"""From a request body to picture files: raw, multipart or base64 JSON. Bytes are counted while they arrive."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

import orjson
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from serve_app.admission import Ticket
from serve_app.errors import InvalidRequest, PayloadTooLarge, RequestError
from serve_app.settings import LimitSettings

FIELD = "image"


@dataclass(frozen=True, slots=True)
class Upload:
    """The picture files of one request; `many` asks for a list as the answer even where it holds one."""

    bodies: list[bytes]
    many: bool


async def read_upload(headers: Headers, stream: AsyncIterator[bytes], limits: LimitSettings, ticket: Ticket) -> Upload:
    """Reads a request body to its end and takes the pictures out.

    Args:
        headers: Content-Type says multipart or JSON; anything else is the file itself.
        stream: the body in pieces.
        limits: `max_body_bytes` and `max_pictures_per_request` are used.
        ticket: the bytes are counted into it.

    Raises:
        InvalidRequest: no picture, or a body that is not what its type says.
        PayloadTooLarge: more bytes or pictures than one request may have.
        Overloaded: this replica holds too many bytes already.
    """
    body = await _read_limited(headers, stream, limits.max_body_bytes, ticket)
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _from_multipart(headers, body, limits.max_pictures_per_request)
    if kind == "application/json":
        return _from_json(body)
    # curl --data-binary calls every body form-urlencoded: such a body is a file unless it is a form for us.
    if kind == "application/x-www-form-urlencoded" and body.startswith(f"{FIELD}=".encode()):
        raise InvalidRequest(
            "the body is a form-urlencoded text; send the file itself (curl --data-binary @photo.jpg), or "
            "multipart/form-data with a field 'image' (curl -F image=@photo.jpg)"
        )
    if not body:
        raise InvalidRequest("the body is empty; send a picture file (curl --data-binary @photo.jpg)")
    return Upload([body], many=False)


async def _read_limited(headers: Headers, stream: AsyncIterator[bytes], most: int, ticket: Ticket) -> bytes:
    declared = headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared) > most:
        raise _too_many_bytes(most)
    pieces: list[bytes] = []
    total = 0
    async for piece in stream:
        total += len(piece)
        if total > most:
            raise _too_many_bytes(most)
        ticket.add_bytes(len(piece))
        pieces.append(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _too_many_bytes(most: int) -> RequestError:
    return PayloadTooLarge(f"the body is larger than {most} bytes; send a smaller picture, or fewer at once")


class _InMemoryParser(MultiPartParser):
    """Keeps files in memory, where the body already is: the body's own limit bounds them."""

    spool_max_size = 1 << 40


async def _from_multipart(headers: Headers, body: bytes, max_pictures: int) -> Upload:
    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    parser = _InMemoryParser(headers, whole(), max_files=max_pictures, max_fields=max_pictures)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many"):
            raise PayloadTooLarge(f"more than {max_pictures} parts in one request; send fewer") from None
        raise InvalidRequest(f"the multipart body is not valid: {error.message}; let your client build it") from None
    except KeyError:
        raise InvalidRequest("the Content-Type of the multipart body has no boundary; let your client set it") from None
    try:
        bodies = await _files_of(form)
    finally:
        await form.close()
    return Upload(bodies, many=len(bodies) > 1)


async def _files_of(form: FormData) -> list[bytes]:
    items = form.getlist(FIELD)
    if not items:
        names = ", ".join(sorted({repr(name) for name, _ in form.multi_items()})) or "none"
        raise InvalidRequest(f"no file in field {FIELD!r} (fields sent: {names}); with curl: -F {FIELD}=@photo.jpg")
    bodies = []
    for item in items:
        if not isinstance(item, UploadFile):
            raise InvalidRequest(f"field {FIELD!r} is text, not a file; with curl: -F {FIELD}=@photo.jpg")
        bodies.append(await item.read())
    return bodies


def _from_json(body: bytes) -> Upload:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    value = document.get(FIELD) if isinstance(document, dict) else None
    if not isinstance(value, str | list) or not value:
        raise InvalidRequest('send {"image": "<base64 of a picture file>"}, or a list of such strings for several')
    return Upload(
        [_from_base64(item) for item in ([value] if isinstance(value, str) else value)], isinstance(value, list)
    )


def _from_base64(text: object) -> bytes:
    if not isinstance(text, str):
        raise InvalidRequest("every picture in JSON must be a base64 string")
    if text.startswith("data:"):  # what browsers make of a file
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest("a picture in JSON is not valid base64 (standard alphabet, no line breaks)") from None
