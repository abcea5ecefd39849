"""The Open Inference Protocol, version 2, without a transport: values, codecs, and what is published of each model.

The protocol: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol, and Triton's
extensions: https://github.com/triton-inference-server/server/tree/main/docs/protocol
"""
