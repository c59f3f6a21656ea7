"""A process that reads texts for a server, which does not load torch.

    python -m longtide_server.training.items.text_worker MODEL

Frames on standard input and output are a length (4 bytes, big endian) and as many bytes. The first one that it writes
names its model; then each frame of texts (MessagePack) is answered by one of their vectors (float32, little endian).
It ends when its input does, and so does not outlive the server.
"""

from __future__ import annotations

import os
import sys
from typing import BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from longtide_server.errors import InvalidInput, LongtideError
from longtide_server.new_items.text_encoder import LENGTH, Ready
from longtide_server.training.items.text_model import INSTALL, TextModel, default_model, named_model


def serve(model_name: str, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the requests end; the model is the one of longtide[text] where no name is given."""
    try:
        model = _model(model_name)
    except LongtideError as exc:
        _write(answers, msgspec.msgpack.encode(Ready(error=str(exc))))
        return
    _write(answers, msgspec.msgpack.encode(Ready(identity=model.identity)))
    while header := requests.read(LENGTH.size):
        texts = msgspec.msgpack.decode(requests.read(*LENGTH.unpack(header)), type=list[str])
        _write(answers, _unit(model.encode(texts)).astype("<f4").tobytes())


def _model(name: str) -> TextModel:
    model = named_model(name) if name else default_model()
    if model is None:
        raise InvalidInput(f"a language model to read texts comes with {INSTALL}")
    return model


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors of length 1; zeros where one has no direction."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    good = np.isfinite(lengths) & (lengths > 0)
    return np.asarray(np.where(good, vectors / np.where(good, lengths, 1.0), 0.0), np.float32)


def _write(answers: BinaryIO, content: bytes) -> None:
    answers.write(LENGTH.pack(len(content)) + content)
    answers.flush()


def main() -> None:
    """Serve on standard input and output; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.argv[1] if len(sys.argv) > 1 else "", sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
