"""Encoders that compute, the fake one of the other tests included: the same rules hold for it."""

from types import SimpleNamespace

import numpy as np
import pytest
from tests.server.encoder.rows import steps

from longtide_server.encoder import AnswerSizes
from longtide_server.encoder.hosted import LocalEncoder
from longtide_server.errors import DeadlineExceeded, EncoderUnavailable
from longtide_server.snapshot import ENCODER

SOON_S = 5.0  # for what happens at once, unless it never happens


@pytest.fixture
async def local(tiny_snapshot):
    encoder = LocalEncoder(tiny_snapshot.path / ENCODER, AnswerSizes.of(tiny_snapshot.embeddings))
    yield encoder
    await encoder.close()


@pytest.fixture(params=["fake", "local"])
def tried(request, local, tiny_snapshot, make_world):
    """An encoder, and what goes with it: the rules hold for the fake as for the real one."""
    snapshot = make_world().snapshot if request.param == "fake" else tiny_snapshot
    encoder = make_world(snapshot=snapshot).encoder if request.param == "fake" else local
    facts = snapshot.manifest.encoder
    return SimpleNamespace(
        encoder=encoder,
        items=len(snapshot.catalog),
        embeddings=snapshot.embeddings,
        temperature=facts.temperature,
        start=np.zeros(facts.state_size, np.float32),
    )


async def test_every_row_has_its_result_in_order(tried):
    rows = [steps(1, 2, 3, state=tried.start), steps(2, state=tried.start), steps(3, 1, state=tried.start)]
    together = await tried.encoder.encode(rows, SOON_S)
    alone = [(await tried.encoder.encode([row], SOON_S))[0] for row in rows]
    assert len(together) == 3
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.query, other.query, atol=1e-5)
        np.testing.assert_allclose(one.state, other.state, atol=1e-5)
        assert one.items.tolist() == other.items.tolist()
    assert not np.allclose(together[0].query, together[1].query, atol=1e-3)


async def test_a_kept_state_goes_on(tried):
    [whole] = await tried.encoder.encode([steps(1, 2, 3, 2, state=tried.start)], SOON_S)
    [before] = await tried.encoder.encode([steps(1, 2, state=tried.start)], SOON_S)
    [after] = await tried.encoder.encode([steps(3, 2, state=before.state)], SOON_S)
    np.testing.assert_allclose(after.query, whole.query, atol=1e-5)
    np.testing.assert_allclose(after.state, whole.state, atol=1e-5)


async def test_a_query_is_a_unit_vector_and_its_items_are_the_nearest(tried):
    [encoded] = await tried.encoder.encode([steps(1, 2, state=tried.start, top_n=3)], SOON_S)
    assert np.linalg.norm(encoded.query) == pytest.approx(1.0, abs=1e-5)
    cosine = tried.embeddings[1:] @ encoded.query
    assert encoded.items.tolist() == (np.argsort(-cosine, kind="stable")[:3] + 1).tolist()
    expected = cosine[encoded.items - 1] / tried.temperature - encoded.log_z
    np.testing.assert_allclose(encoded.log_probability, expected, atol=1e-4)


async def test_the_probabilities_of_the_whole_catalogue_are_one(tried):
    [encoded] = await tried.encoder.encode([steps(1, state=tried.start, top_n=1_000)], SOON_S)
    assert sorted(encoded.items.tolist()) == list(range(1, tried.items + 1))
    assert np.exp(encoded.log_probability).sum() == pytest.approx(1.0, abs=1e-5)


async def test_the_local_encoder_keeps_its_callers_deadline_and_works_on(local, tiny_snapshot):
    row = steps(1, state=np.zeros(tiny_snapshot.manifest.encoder.state_size))
    with pytest.raises(DeadlineExceeded):
        await local.encode([row], 0.0)
    assert len(await local.encode([row], SOON_S)) == 1


async def test_what_the_local_model_cannot_encode_is_an_unavailable_encoder(local, tiny_snapshot):
    nonsense = steps(1, state=(1.0, 2.0, 3.0))  # not the size of its states
    with pytest.raises(EncoderUnavailable, match="the encoder failed"):
        await local.encode([nonsense], SOON_S)


async def test_a_closed_local_encoder_refuses(local, tiny_snapshot):
    await local.close()
    with pytest.raises(EncoderUnavailable):
        await local.encode([steps(1, state=np.zeros(tiny_snapshot.manifest.encoder.state_size))], SOON_S)
