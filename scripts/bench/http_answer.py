"""HTTP/1.1 answers as a load generator needs them: the status, where the answer ends, little of the body."""

from __future__ import annotations

from enum import Enum, auto

KEPT_BODY_BYTES = 300
MAX_HEAD_BYTES = 64 * 1024


class Malformed(Exception):
    """Not an HTTP/1.x answer, or more bytes than the answer has."""


class _Part(Enum):
    HEAD = auto()
    LENGTH = auto()
    CHUNKS = auto()
    TRAILER = auto()
    UNTIL_CLOSE = auto()


class AnswerParser:
    """Reads one answer at a time, in whatever pieces it arrives.

    Attributes:
        status: of the last head that was complete.
        close: whether the connection ends with this answer.
        body: the first bytes of the body, kept only where the status is not 2xx.
    """

    __slots__ = ("_buffer", "_left_bytes", "_part", "body", "close", "status")

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Forgets the last answer; call it before each request."""
        self.status = 0
        self.close = False
        self.body = b""
        self._buffer = b""
        self._left_bytes = 0
        self._part = _Part.HEAD

    def feed(self, data: bytes) -> bool:
        """Takes what arrived; true once the answer is complete. Raises Malformed."""
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        at = 0
        while self._part is _Part.HEAD:
            end = data.find(b"\r\n\r\n", at)
            if end < 0:
                if len(data) > MAX_HEAD_BYTES:
                    raise Malformed("no end of the head")
                self._buffer = data[at:]
                return False
            self._read_head(data[at : end + 2].lower())
            at = end + 4
        if self._part is _Part.LENGTH:
            return self._read_length(data, at)
        if self._part is _Part.UNTIL_CLOSE:
            self._keep(data[at:])
            return False
        return self._read_chunks(data, at)

    def ends_with_connection(self) -> bool:
        """Whether a connection that closes now completes the answer, as it does where no length was given."""
        return self._part is _Part.UNTIL_CLOSE

    def _read_head(self, head: bytes) -> None:
        if not head.startswith(b"http/1.") or not head[9:12].isdigit():
            raise Malformed(repr(head[:40]))
        self.status = int(head[9:12])
        if self.status < 200:  # 100 Continue: the answer itself is still to come
            return
        connection = _header(head, b"connection")
        self.close = b"close" in connection or (head.startswith(b"http/1.0") and b"keep-alive" not in connection)
        length = _header(head, b"content-length")
        if length.isdigit():
            self._part, self._left_bytes = _Part.LENGTH, int(length)
        elif b"chunked" in _header(head, b"transfer-encoding"):
            self._part = _Part.CHUNKS
        elif self.status in (204, 304):
            self._part = _Part.LENGTH
        else:
            self._part, self.close = _Part.UNTIL_CLOSE, True

    def _read_length(self, data: bytes, at: int) -> bool:
        self._left_bytes -= len(data) - at
        if self.status >= 300:
            self._keep(data[at:])
        if self._left_bytes < 0:
            raise Malformed("more bytes than Content-Length says")
        return self._left_bytes == 0

    def _read_chunks(self, data: bytes, at: int) -> bool:
        while True:
            if self._left_bytes:  # of a chunk, with the line end behind it
                taken = min(self._left_bytes, len(data) - at)
                self._keep(data[at : at + min(taken, max(0, self._left_bytes - 2))])
                self._left_bytes -= taken
                at += taken
                if self._left_bytes:
                    return False
            end = data.find(b"\r\n", at)
            if end < 0:
                self._buffer = data[at:]
                return False
            line, at = data[at:end], end + 2
            if self._part is _Part.CHUNKS:
                self._start_chunk(line)
            elif not line:
                if at < len(data):
                    raise Malformed("bytes behind the last chunk")
                return True

    def _start_chunk(self, line: bytes) -> None:
        try:
            size_bytes = int(line.partition(b";")[0], 16)
        except ValueError:
            raise Malformed(f"chunk of {line[:20]!r} bytes") from None
        if size_bytes:
            self._left_bytes = size_bytes + 2
        else:
            self._part = _Part.TRAILER

    def _keep(self, data: bytes) -> None:
        if self.status >= 300 and len(self.body) < KEPT_BODY_BYTES:
            self.body = (self.body + data)[:KEPT_BODY_BYTES]


def _header(head: bytes, name: bytes) -> bytes:
    """A header's value, empty where it is missing; `head` is in lower case and ends with a line end."""
    at = head.find(b"\r\n" + name + b":")
    if at < 0:
        return b""
    at += len(name) + 3
    return head[at : head.find(b"\r\n", at)].strip()
