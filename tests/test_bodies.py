from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from scripts.bench.load import multipart_body
from serve_app.admission import Admission, ServiceRate
from serve_app.bodies import Upload, read_upload
from serve_app.errors import InvalidRequest, PayloadTooLarge
from serve_app.settings import LimitSettings


def read(body: bytes, content_type: str, piece_bytes: int = 1 << 16, **limits: int) -> Upload:
    """`read_upload` of a body that arrives in pieces."""
    settings = LimitSettings(**limits)

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(body), piece_bytes):
            yield body[at : at + piece_bytes]

    async def run() -> Upload:
        with Admission(settings, ServiceRate(1.0)).ticket() as ticket:
            return await read_upload(Headers({"content-type": content_type}), pieces(), settings, ticket)

    return asyncio.run(run())


FILES = st.lists(st.binary(max_size=300) | st.sampled_from([b"\r\n--", b"--b--\r\n", b"\r\n"]), min_size=1, max_size=5)


@given(FILES, st.integers(1, 400))
def test_files_come_out_of_multipart_as_they_went_in(files: list[bytes], piece_bytes: int) -> None:
    body, content_type = multipart_body(files)
    upload = read(body, content_type, piece_bytes)
    assert upload.bodies == files
    assert upload.many == (len(files) > 1)


@given(FILES, st.data())
def test_a_multipart_body_that_is_cut_short_is_refused(files: list[bytes], data: st.DataObject) -> None:
    body, content_type = multipart_body(files)
    cut = data.draw(st.integers(1, len(body) - 5))  # the last line break and dashes may be missing
    with pytest.raises(InvalidRequest):
        read(body[:cut], content_type)


@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    with suppress(InvalidRequest, PayloadTooLarge):
        read(body, "multipart/form-data; boundary=b")


def test_other_fields_do_not_get_in_the_way() -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="title"\r\n\r\nA cat\r\n'
        b'--b\r\nContent-Type: image/jpeg\r\nContent-Disposition: form-data; filename="cat.jpg"; name="image"\r\n\r\n'
        b"the file\r\n--b--\r\n"
    )
    assert read(body, "multipart/form-data; boundary=b").bodies == [b"the file"]


def test_more_parts_than_allowed_are_refused() -> None:
    body, content_type = multipart_body([b"x"] * 4)
    assert len(read(body, content_type, max_pictures_per_request=4).bodies) == 4
    with pytest.raises(PayloadTooLarge, match="more than 3"):
        read(body, content_type, max_pictures_per_request=3)
