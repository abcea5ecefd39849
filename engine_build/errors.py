"""What can stop a build, in the order a build meets it. The message ends with what to do next.

SetupError (serve_app)
`- BuildError              a request that cannot be built as it stands
    |- WeightsUnavailable  the weights can neither be fetched nor read
    |- CheckpointMismatch  a weights file that does not fit the architecture or the labels
    |- PicturesUnusable    a folder without readable pictures, or labels that do not belong to it
    |- CompileFailed       TensorRT refuses the network, the settings, or the GPU
    `- VerificationFailed  an engine that answers differently than torch eager
"""

from __future__ import annotations

from collections.abc import Sequence

from serve_app.errors import SetupError


class BuildError(SetupError):
    """A request that cannot be built as it stands."""


class WeightsUnavailable(BuildError):
    """The weights can neither be fetched nor read."""


class CheckpointMismatch(BuildError):
    """A weights file that does not fit the architecture or the labels."""


class PicturesUnusable(BuildError):
    """A folder without readable pictures, or labels that do not belong to it."""


class CompileFailed(BuildError):
    """TensorRT refuses the network, the settings, or the GPU.

    Args:
        what: it was doing.
        lines: it logged meanwhile.
    """

    def __init__(self, what: str, lines: Sequence[str] = ()) -> None:
        said = f"; it said: {' | '.join(lines)}" if lines else ""
        super().__init__(f"{what}{said}")
        self.lines = tuple(lines)


class VerificationFailed(BuildError):
    """An engine that answers differently than torch eager."""
