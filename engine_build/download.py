"""Fetches official weights once into a cache: resumed where it broke off, checked against the hash in their name."""

from __future__ import annotations

import errno
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO

from filelock import FileLock
from tqdm import tqdm

from engine_build.errors import WeightsUnavailable
from engine_build.zoo import Download
from serve_app.manifest import sha256_of

DEFAULT_WEIGHTS_DIR = Path.home() / ".cache" / "image-serve" / "weights"
_PIECE_BYTES = 1 << 18
_LOCAL_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM}


def fetch(source: Download, weights_dir: Path, *, timeout_s: float = 10.0) -> Path:
    """The weights file in `weights_dir`, downloaded if it is not there yet.

    Args:
        timeout_s: longest wait for a connection, or for the next bytes of one.

    Raises:
        WeightsUnavailable: no connection, an HTTP error, or other bytes than the hash in the name promises.
    """
    weights_dir.mkdir(parents=True, exist_ok=True)
    target = weights_dir / source.file_name
    with FileLock(target.with_name(target.name + ".lock")):
        if target.is_file() and _fits(target, source):
            return target
        part = target.with_name(target.name + ".part")
        try:
            _download(source, part, timeout_s)
        except (OSError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) in _LOCAL_ERRORS:
                raise
            raise WeightsUnavailable(_advice(source, weights_dir, _reason(error))) from None
        if not _fits(part, source):
            part.unlink()
            raise WeightsUnavailable(_advice(source, weights_dir, "what was received does not match its hash"))
        os.replace(part, target)
    return target


def _download(source: Download, part: Path, timeout_s: float) -> None:
    have_bytes = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have_bytes}-"} if have_bytes else {}
    request = urllib.request.Request(source.url, headers={"User-Agent": "image-serve", **headers})
    try:
        response = urllib.request.urlopen(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        # What is there is as long as the file, or longer: it is whole, or it is not the beginning of this file.
        if not _fits(part, source):
            part.unlink()
            _download(source, part, timeout_s)
        return
    with response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        with part.open("ab" if resumed else "wb") as file:
            _copy(response, file, source.file_name, have_bytes if resumed else 0)


def _copy(response: http.client.HTTPResponse, file: IO[bytes], name: str, have_bytes: int) -> None:
    length = response.headers.get("Content-Length")
    total = have_bytes + int(length) if length else None
    bar = tqdm(
        desc=f"      {name}", total=total, initial=have_bytes, unit="B", unit_scale=True, leave=False, disable=None
    )
    with bar:
        while piece := response.read(_PIECE_BYTES):
            file.write(piece)
            bar.update(len(piece))
            have_bytes += len(piece)
    # A connection that is cut reads like the end of the file.
    if total is not None and have_bytes < total:
        raise ConnectionError(f"the connection broke after {have_bytes} of {total} bytes, the next try resumes there")


def _fits(path: Path, source: Download) -> bool:
    return sha256_of(path).startswith(source.sha256_prefix)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return str(getattr(reason, "strerror", None) or reason or type(error).__name__)


def _advice(source: Download, weights_dir: Path, reason: str) -> str:
    return (
        f"weights {source.file_name} cannot be fetched ({reason}); "
        f"copy {source.file_name} from {source.url} into {weights_dir}, or pass --weights FILE"
    )
