"""The Open Inference Protocol over gRPC: `inference.GRPCInferenceService`, as Triton's clients call it.

Serve runs the gRPC server: in its proxy, or in each replica of the ingress behind HAProxy. It takes the names of the
calls from `add_to_server` and calls the methods of those names of the ingress deployment, which inherits them.
"""

from serve_app.v2_grpc.handlers import add_to_server
from serve_app.v2_grpc.service import InferenceService

__all__ = ["InferenceService", "add_to_server"]
