"""From a request body to picture files: raw, multipart or base64 JSON. Bytes are counted while they arrive."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers

from serve_app.admission import Ticket
from serve_app.errors import InvalidRequest, PayloadTooLarge, RequestError
from serve_app.settings import LimitSettings

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELD = "image"
MULTIPART = "multipart/form-data"


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
    body = await read_body(headers, stream, limits.max_body_bytes, ticket)
    kind = media_type(headers)
    if kind == MULTIPART:
        files = form_files(headers, body, limits.max_pictures_per_request)
        return _counted(Upload(files, many=len(files) > 1), ticket)
    if kind == "application/json":
        return _counted(_from_json(body), ticket)
    # curl --data-binary calls every body form-urlencoded: such a body is a file unless it is a form for us.
    if kind == "application/x-www-form-urlencoded" and body.startswith(f"{FIELD}=".encode()):
        raise InvalidRequest(
            "the body is a form-urlencoded text; send the file itself (curl --data-binary @photo.jpg), or "
            "multipart/form-data with a field 'image' (curl -F image=@photo.jpg)"
        )
    if not body:
        raise InvalidRequest("the body is empty; send a picture file (curl --data-binary @photo.jpg)")
    return Upload([body], many=False)


def _counted(upload: Upload, ticket: Ticket) -> Upload:
    """The files are copies: while they are taken out, they and the whole body are in memory."""
    ticket.add_bytes(sum(len(body) for body in upload.bodies))
    return upload


def media_type(headers: Headers) -> str:
    """Of the Content-Type, without its parameters; "" where there is none."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_body(headers: Headers, stream: AsyncIterator[bytes], most: int, ticket: Ticket) -> bytes:
    """A body of at most `most` bytes, counted into the ticket while it arrives.

    Raises:
        PayloadTooLarge: it has more, or says so.
        Overloaded: this replica holds too many bytes already.
    """
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


@dataclass(slots=True)
class _Part:
    name: str = ""
    is_file: bool = False
    spans: list[tuple[int, int]] = field(default_factory=list)


class _Parts:
    """What the parser of a whole body in memory found: where each part's data lies, nothing is copied before that.

    Starlette's form parser, made for streams, puts every file into a spooled temporary file of its own, which costs
    more than the parsing.
    """

    def __init__(self, most: int) -> None:
        self.parts: list[_Part] = []
        self.complete = False
        self._most = most
        self._name, self._value = b"", b""

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": lambda data, start, end: self.parts[-1].spans.append((start, end)),
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.parts) == self._most:
            raise PayloadTooLarge(f"more than {self._most} parts in one request; send fewer")
        self.parts.append(_Part())

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            self.parts[-1].name = options.get(b"name", b"").decode("utf-8", "replace")
            self.parts[-1].is_file = b"filename" in options
        self._name, self._value = b"", b""

    def _end(self) -> None:
        self.complete = True


def form_files(headers: Headers, body: bytes, max_pictures: int, names: Sequence[str] = (FIELD,)) -> list[bytes]:
    """The files of a multipart body, of the fields called one of `names`; at least one.

    Raises:
        InvalidRequest: no such file, or not a valid form.
        PayloadTooLarge: more than `max_pictures` parts.
    """
    _, options = parse_options_header(headers.get("content-type"))
    boundary = options.get(b"boundary")
    if not boundary:
        raise InvalidRequest("the Content-Type of the multipart body has no boundary; let your client set it")
    found = _Parts(max_pictures)
    try:
        MultipartParser(boundary, found.callbacks()).write(body)
    except FormParserError as error:
        raise InvalidRequest(f"the multipart body is not valid: {error}; let your client build it") from None
    if not found.complete:
        raise InvalidRequest("the multipart body is not valid: it ends before its last boundary; send all of it")
    return _files_of(found.parts, body, names)


def _files_of(parts: list[_Part], body: bytes, names: Sequence[str]) -> list[bytes]:
    items = [part for part in parts if part.name in names]
    name = items[0].name if items else names[0]
    if not items:
        sent = ", ".join(sorted({repr(part.name) for part in parts})) or "none"
        raise InvalidRequest(f"no file in field {name!r} (fields sent: {sent}); with curl: -F {name}=@photo.jpg")
    if not all(part.is_file for part in items):
        raise InvalidRequest(f"field {name!r} is text, not a file; with curl: -F {name}=@photo.jpg")
    return [b"".join(body[start:end] for start, end in part.spans) for part in items]


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
