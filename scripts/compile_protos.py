#!/usr/bin/env python
"""Compiles serve_app/oip/protos/*.proto into the descriptors beside them, which the service reads in their place.

The .proto files are Triton's, unchanged, from protobuf/ of
https://github.com/triton-inference-server/common/tree/83adf7cf88a2f343005974dff3728be746de2d66 (BSD-3-Clause).
Needs `pip install grpcio-tools`, in an environment of its own: it wants a protobuf that other packages may not.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PROTOS = Path(__file__).parent.parent / "serve_app" / "oip" / "protos"
COMPILED = PROTOS / "grpc_service.binpb"


def compiler() -> list[str] | None:
    """The command of a protobuf compiler that is installed here, if there is one."""
    if protoc := shutil.which("protoc"):
        return [protoc]
    if subprocess.run([sys.executable, "-c", "import grpc_tools.protoc"], capture_output=True).returncode == 0:
        return [sys.executable, "-m", "grpc_tools.protoc"]
    return None


def compiled(command: list[str]) -> bytes:
    """A serialised `FileDescriptorSet` of the service and all it imports, without comments.

    Raises:
        subprocess.CalledProcessError: a .proto file does not compile.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "descriptors"
        arguments = [f"-I{PROTOS}", "--include_imports", f"--descriptor_set_out={output}", "grpc_service.proto"]
        subprocess.run([*command, *arguments], check=True)
        return output.read_bytes()


def main() -> int:
    command = compiler()
    if command is None:
        print("no protobuf compiler here; pip install grpcio-tools, in an environment of its own", file=sys.stderr)
        return 1
    COMPILED.write_bytes(compiled(command))
    print(f"{COMPILED}: {COMPILED.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
