"""What is packed for the handler, and what of its answer is believed."""

from types import SimpleNamespace

import numpy as np
import pytest
from tests.server.encoder.rows import steps

from longtide_handlers.encoder_handler import LongtideEncoderHandler
from longtide_server.encoder import AnswerSizes
from longtide_server.encoder.arrays import pack, unpack
from longtide_server.errors import EncoderUnavailable
from longtide_server.snapshot import ENCODER


def test_rows_are_packed_one_after_the_other():
    packed = pack([steps(7, 8, state=(1, 2), top_n=5), steps(9, state=(3, 4), top_n=2)])
    assert np.frombuffer(packed["lengths"], np.int32).tolist() == [2, 1]
    assert np.frombuffer(packed["items"], np.int32).tolist() == [7, 8, 9]
    assert packed["types"] == b"\x01\x01\x01"
    assert np.frombuffer(packed["gaps"], np.float32).tolist() == [1, 1, 1]
    assert np.isnan(np.frombuffer(packed["values"], np.float32)).tolist() == [True] * 3
    assert np.frombuffer(packed["states"], np.float32).tolist() == [1, 2, 3, 4]
    assert np.frombuffer(packed["top_n"], np.int32).tolist() == [5]


def test_the_handler_reads_what_is_packed_and_its_answer_is_unpacked(tiny_snapshot):
    handler = LongtideEncoderHandler()
    handler.initialize(
        SimpleNamespace(
            system_properties={"model_dir": str(tiny_snapshot.path), "gpu_id": None},
            manifest={"model": {"serializedFile": ENCODER}},
        )
    )
    facts = tiny_snapshot.manifest.encoder
    start = np.zeros(facts.state_size, np.float32)
    batch = [steps(1, 2, state=start), steps(3, state=start)]
    [answer] = handler.handle([pack(batch)], None)
    first, second = unpack(answer, batch, AnswerSizes.of(tiny_snapshot.embeddings))
    assert first.query.shape == second.query.shape == (facts.dim,)
    assert first.state.shape == (facts.state_size,)
    assert len(first.items) == len(first.log_probability) == 3
    assert first.items.min() >= 1


TWO = [steps(1, state=(0.0,)), steps(2, state=(0.0,))]


SIZES = AnswerSizes(dim=2, item_count=9)


def answer(b=2, d=2, s=1, n=1, **parts):
    """A handler's answer by hand; a part may be replaced."""
    parts.setdefault("log_probability", np.full(b * n, -1.0))
    shapes = {"query": b * d, "state": b * s, "items": b * n, "log_probability": b * n, "log_z": b}
    kinds = {"items": np.int32}
    header = np.array([b, d, s, n], np.int32).tobytes()
    arrays = (parts.get(name, np.arange(size) + 1.0) for name, size in shapes.items())
    types = (kinds.get(name, np.float32) for name in shapes)
    return header + b"".join(np.asarray(a, t).tobytes() for a, t in zip(arrays, types, strict=True))


def test_an_answer_is_unpacked_row_by_row():
    first, second = unpack(answer(query=[1, 0, 0, 1], state=[5, 6], items=[8, 9], log_z=[0.5, 1.5]), TWO, SIZES)
    assert (first.query.tolist(), first.state.tolist(), first.items.tolist()) == ([1, 0], [5], [8])
    assert (second.query.tolist(), second.state.tolist(), second.items.tolist()) == ([0, 1], [6], [9])
    assert (first.log_z, second.log_z) == (0.5, 1.5)


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        answer()[:15],
        answer()[:-1],
        answer() + b"\0",
        answer(b=1),
        answer(b=3),
        answer(n=0),
        answer(d=3),
        answer(s=2),
    ],
    ids=["empty", "no header", "short", "long", "a row too few", "a row too many", "no items", "wider", "other states"],
)
def test_an_answer_of_another_shape_is_refused(damaged):
    with pytest.raises(EncoderUnavailable, match="the encoder answered"):
        unpack(damaged, TWO, SIZES)


@pytest.mark.parametrize("item", [0, -1, 10, 2**31 - 1])
def test_an_answer_with_items_that_there_are_not_is_refused(item):
    with pytest.raises(EncoderUnavailable, match=f" to {max(item, 9)}; there are 1 to 9"):
        unpack(answer(items=[9, item]), TWO, SIZES)


def test_an_answer_whose_probabilities_are_none_is_refused():
    assert unpack(answer(log_probability=[-1.0, 1e-5]), TWO, SIZES)  # as near to one as rounding comes
    with pytest.raises(EncoderUnavailable, match="a log-probability of "):
        unpack(answer(log_probability=[-1.0, 0.5]), TWO, SIZES)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("part", ["query", "state", "log_probability", "log_z"])
def test_of_an_answer_only_the_rows_that_are_not_finite_are_refused(part, value):
    size = 4 if part == "query" else 2
    first, second = unpack(answer(**{part: [-1.0] * (size - 1) + [value]}), TWO, SIZES)
    assert (first.items.tolist(), second) == ([1], None)


def test_an_answer_of_which_no_row_is_finite_is_refused():
    with pytest.raises(EncoderUnavailable, match="the encoder answered nothing that is finite"):
        unpack(answer(log_z=[np.nan, np.inf]), TWO, SIZES)
