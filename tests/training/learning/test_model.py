from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from longtide_server.training.learning.content import Content
from longtide_server.training.learning.model import (
    Block,
    Dropout,
    Encoder,
    ItemTable,
    Memories,
    ModelConfig,
    deviations,
)
from longtide_server.training.learning.serving import ServingEncoder

ITEMS = 20
PLAIN = ModelConfig(ITEMS, dim=8, hidden=12, blocks=2)
EVERY_INPUT = ModelConfig(
    ITEMS, dim=8, hidden=12, blocks=2, use_types=True, use_gaps=True, use_values=True, value_mean=3.0, value_std=2.0
)
both = pytest.mark.parametrize("config", [PLAIN, EVERY_INPUT], ids=["items", "types, gaps and values"])


pytestmark = pytest.mark.usefixtures("one_thread")


def encoder(config: ModelConfig) -> Encoder:
    """An encoder in which every weight, those that begin at zero too, has a say."""
    torch.manual_seed(0)
    model = Encoder(config).eval()
    for weight in model.parameters():
        if weight.dim() > 1 or weight is model.value_weight:
            nn.init.normal_(weight, std=0.4)
    with torch.no_grad():
        model.items.ids.weight[0].zero_()
    return model


def events(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Items, types, gaps and values of one user; every third value is absent."""
    rng = np.random.default_rng(seed)
    values = rng.normal(3, 2, count).astype(np.float32)
    values[::3] = np.nan
    return (
        torch.from_numpy(rng.integers(1, ITEMS + 1, count)),
        torch.from_numpy(rng.integers(1, 13, count)),
        torch.from_numpy((10 ** rng.uniform(0, 7, count)).astype(np.float32)),
        torch.from_numpy(values),
    )


def joined(*users: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Several users' events in flat arrays, one user after the other, and their lengths."""
    return (*(torch.cat(part) for part in zip(*users, strict=True)), torch.tensor([len(user[0]) for user in users]))


@torch.inference_mode()
def stepped(model: Encoder, user: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Query vectors (T, D) and the state (S,) of a user whose events come one at a time, as they do in service."""
    serving, state, queries = ServingEncoder(model), model.initial_state(1), []
    for n in range(len(user[0])):
        query, state = serving.encode(*joined(tuple(part[n : n + 1] for part in user)), state)
        queries.append(query[0])
    return torch.stack(queries), state[0]


# One state, however the events come


@both
@pytest.mark.parametrize("count", [10, 300, 2_000])
@torch.inference_mode()
def test_event_by_event_gives_what_the_whole_sequence_gives(config, count):
    model, user = encoder(config), events(count)
    queries, state = stepped(model, user)

    whole, whole_state = model(*(part[None] for part in user), model.initial_state(1))
    assert_close(queries, whole[0], atol=1e-4, rtol=0)
    assert_close(state, whole_state[0], atol=1e-4, rtol=0)

    in_chunks, chunked_state = ServingEncoder(model).encode(*joined(user), model.initial_state(1))
    assert_close(queries[-1], in_chunks[0], atol=1e-4, rtol=0)
    assert_close(state, chunked_state[0], atol=1e-4, rtol=0)


@both
@torch.inference_mode()
def test_a_history_cut_anywhere_goes_on_from_its_state(config):
    model, serving = encoder(config), ServingEncoder(encoder(config), chunk=16)
    user = events(50)
    at_once = serving.encode(*joined(user), model.initial_state(1))
    _, middle = serving.encode(*joined(tuple(part[:33] for part in user)), model.initial_state(1))
    assert_close(serving.encode(*joined(tuple(part[33:] for part in user)), middle), at_once, atol=1e-5, rtol=0)


@both
@pytest.mark.parametrize("chunk", [1, 7, 2_048])
@torch.inference_mode()
def test_rows_of_any_lengths_are_what_whole_sequences_say_of_their_last_events(config, chunk):
    model = encoder(config)
    users = [events(count, seed=count) for count in (3, 70, 1, 7, 70)]
    states = torch.randn(5, config.state_size, generator=torch.Generator().manual_seed(1))
    queries, after = ServingEncoder(model, chunk=chunk).encode(*joined(*users), states)

    for row, user in enumerate(users):
        alone, alone_state = model(*(part[None] for part in user), states[row : row + 1])
        assert_close(queries[row], alone[0, -1], atol=1e-5, rtol=0)
        assert_close(after[row], alone_state[0], atol=1e-5, rtol=0)


@torch.inference_mode()
def test_what_only_the_last_events_answer_needs_is_computed_of_nothing_else():
    model, computed = encoder(PLAIN), {}
    parts = {"first": model.blocks[0].feed_forward, "last": model.blocks[-1].feed_forward, "gate": model.gate}
    for name, part in parts.items():
        part.register_forward_hook(lambda part, inputs, output, name=name: computed.update({name: len(inputs[0])}))
    ServingEncoder(model).encode(*joined(events(20), events(7), events(1)), model.initial_state(3))
    assert computed == {"first": 28, "last": 3, "gate": 3}  # no padding either


@both
@torch.inference_mode()
def test_a_row_of_a_batch_is_that_row_alone(config):
    serving = ServingEncoder(encoder(config), chunk=8)
    users = [events(count, seed=count) for count in (1, 8, 30, 3)]
    states = torch.randn(4, config.state_size, generator=torch.Generator().manual_seed(1))
    together = serving(*joined(*users), states, 5)
    for row, user in enumerate(users):
        alone = serving(*joined(user), states[row : row + 1], 5)
        for found, expected in zip(together, alone, strict=True):
            assert_close(found[row], expected[0])


@both
@torch.inference_mode()
def test_the_scripted_encoder_is_the_eager_one(config, tmp_path):
    eager = ServingEncoder(encoder(config), chunk=8)
    torch.jit.script(eager).save(str(tmp_path / "encoder.pt"))
    scripted = torch.jit.load(str(tmp_path / "encoder.pt"))
    arguments = (*joined(events(20), events(1), events(9)), torch.randn(3, config.state_size), 6)
    for found, expected in zip(scripted(*arguments), eager(*arguments), strict=True):
        assert_close(found, expected)


@torch.inference_mode()
def test_a_row_of_a_batch_whose_scores_do_not_fit_is_that_row_alone():
    at_once = ServingEncoder(encoder(PLAIN))
    row_by_row = ServingEncoder(encoder(PLAIN), scored_cells=1)
    arguments = (*joined(events(20), events(1), events(9)), torch.randn(3, PLAIN.state_size), 6)
    for found, expected in zip(row_by_row(*arguments), at_once(*arguments), strict=True):
        assert_close(found, expected)


@torch.inference_mode()
def test_lists_found_in_half_precision_are_those_of_full_precision(tmp_path):
    config = replace(PLAIN, item_count=12_000, dim=64)
    torch.jit.script(ServingEncoder(encoder(config))).save(str(tmp_path / "encoder.pt"))
    full, half = (torch.jit.load(str(tmp_path / "encoder.pt")) for _ in range(2))
    half.score_in_half()
    users = [events(1 + row % 7, seed=row) for row in range(50)]
    arguments = (*joined(*users), torch.randn(50, config.state_size), 10)
    assert half.candidates.size(0) >= 256 * 4 * 10  # else it is not worth it
    query, state, items, log_probability, log_z = half(*arguments)
    expected = full(*arguments)
    assert_close((query, state), expected[:2])
    assert (items == expected[2]).all(1).float().mean() >= 0.999
    assert_close(log_z, expected[4], atol=5e-4, rtol=0)
    assert_close(log_probability, expected[3], atol=5e-4, rtol=0)


def test_a_state_is_as_large_as_the_manifest_says():
    assert PLAIN.state_size == 2 * 2 * 12 + 3 * 8  # two blocks' h and c, three memories
    model = encoder(PLAIN)
    assert model.initial_state(4).shape == (4, 72)
    _, state = model(*(part[None] for part in events(5)), model.initial_state(1))
    assert state.shape == (1, 72)


# What the inputs do


def changed(config: ModelConfig, part: int) -> bool:
    """Whether other types (1), gaps (2) or values (3) of the same items change the query."""
    model, user = encoder(config), list(events(5))
    before = stepped(model, user)[0]
    user[part] = events(5, seed=9)[part]
    return not torch.equal(before, stepped(model, user)[0])


@pytest.mark.parametrize("part", [1, 2, 3], ids=["types", "gaps", "values"])
def test_an_input_has_a_say_only_where_the_model_uses_it(part):
    assert changed(EVERY_INPUT, part)
    assert not changed(PLAIN, part)


def test_an_absent_value_counts_as_the_mean():
    model, (items, types, gaps, _) = encoder(EVERY_INPUT), events(4)
    absent, mean = torch.full((4,), float("nan")), torch.full((4,), 3.0)
    assert_close(stepped(model, (items, types, gaps, absent)), stepped(model, (items, types, gaps, mean)))


@both
def test_a_value_of_any_size_leaves_the_answer_finite(config):
    config = replace(config, value_std=1e-3)
    model, (items, types, gaps, _) = encoder(config), events(3)
    query, state = stepped(model, (items, types, gaps, torch.tensor([3.4e38, -3.4e38, 1.0])))
    assert torch.isfinite(query).all()
    assert state.abs().max() < 1e4  # what comes after it still has a say


def test_values_far_from_the_mean_keep_their_order_up_to_a_thousand_deviations():
    values = torch.tensor([5.0, 3.0, 603.0, 1_803.0, 2_003.0, 9e9, -9e9, float("nan")])
    scaled = torch.nan_to_num(deviations(values, mean=3.0, std=2.0), nan=-1.0)
    assert scaled.tolist() == [1.0, 0.0, 300.0, 900.0, 1_000.0, 1_000.0, -1_000.0, -1.0]


def test_a_gap_of_any_length_has_a_place():
    model, (items, types, _, values) = encoder(EVERY_INPUT), events(3)
    query, _ = stepped(model, (items, types, torch.tensor([-5.0, 0.0, 1e30]), values))
    assert torch.isfinite(query).all()


@pytest.mark.parametrize(
    ("bias", "heard", "silent"), [(50.0, "short_term", "long_term"), (-50.0, "long_term", "short_term")]
)
def test_the_gate_lets_one_interest_through_or_the_other(bias, heard, silent):
    model, user = encoder(PLAIN), events(6)
    nn.init.zeros_(model.gate.weight)
    nn.init.constant_(model.gate.bias, bias)
    before, _ = stepped(model, user)
    nn.init.normal_(getattr(model, silent).weight)
    assert_close(stepped(model, user)[0], before)
    nn.init.normal_(getattr(model, heard).weight)
    assert not torch.allclose(stepped(model, user)[0], before, atol=1e-2)


@torch.inference_mode()
def test_the_last_item_reaches_the_output_past_recurrence_and_memories():
    model = encoder(PLAIN)
    for silent in (model.short_term, model.long_term, *(part for block in model.blocks for part in last_layers(block))):
        nn.init.zeros_(silent.weight)
        nn.init.zeros_(silent.bias)
    first, second, third = (tuple(part[n : n + 1] for part in events(3)) for n in range(3))

    def after(*users):
        return stepped(model, tuple(map(torch.cat, zip(*users, strict=True))))[0][-1]

    assert_close(after(first, third), after(second, third))
    assert not torch.allclose(after(first, third), after(first, second), atol=1e-2)


def last_layers(block: Block) -> tuple[nn.Linear, nn.Linear]:
    """What a block adds to the sum."""
    return block.project, block.feed_forward[4]


@torch.inference_mode()
def test_the_gate_sees_the_time_since_the_last_event():
    model = encoder(EVERY_INPUT)
    y, gap, other = torch.randn(3, 2, 8)
    memories = torch.randn(2, 3, 8)
    before = model._query(y, gap, memories)
    assert not torch.allclose(model._query(y, other, memories), before, atol=1e-2)
    model.gate.weight[:, -8:] = 0.0
    assert_close(model._query(y, other, memories), model._query(y, gap, memories))


# Scores


@torch.inference_mode()
def test_log_z_makes_the_probabilities_of_all_items_sum_to_one():
    serving = ServingEncoder(encoder(PLAIN))
    query, _, items, log_probability, log_z = serving(*joined(events(5)), torch.zeros(1, 72), 4)

    cosine = serving.encoder.item_embeddings()[1:] @ query[0]
    probability = torch.exp(cosine / PLAIN.temperature - log_z[0])
    assert_close(probability.sum(), torch.tensor(1.0))
    best = torch.argsort(probability, descending=True)[:4]
    assert items[0].tolist() == (best + 1).tolist()
    assert_close(log_probability[0].exp(), probability[best])


@torch.inference_mode()
def test_asked_for_more_than_the_catalogue_it_gives_the_catalogue():
    _, _, items, log_probability, _ = ServingEncoder(encoder(PLAIN))(*joined(events(5)), torch.zeros(1, 72), 99)
    assert sorted(items[0].tolist()) == list(range(1, ITEMS + 1))
    assert_close(log_probability.exp().sum(), torch.tensor(1.0))


@torch.inference_mode()
def test_queries_and_embeddings_have_length_one_and_padding_none():
    model = encoder(PLAIN)
    queries, _ = stepped(model, events(6))
    assert_close(queries.norm(dim=1), torch.ones(6))
    assert_close(model.item_embeddings().norm(dim=1), torch.tensor([0.0] + [1.0] * ITEMS))


# Parts


def test_dropout_does_nothing_in_evaluation_or_at_share_zero():
    x = torch.randn(5, 7)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0).train()(x), x)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_dropout_drops_its_share_and_keeps_the_mean(share):
    torch.manual_seed(0)
    dropped = Dropout(share).train()(torch.ones(999, 101))
    assert abs(float((dropped == 0).float().mean()) - share) < 0.01
    assert abs(float(dropped.mean()) - 1.0) < 0.01
    assert len(dropped.unique()) == 2


def test_dropout_lets_gradients_through_only_where_it_kept():
    x = torch.ones(100, requires_grad=True)
    y = Dropout(0.5).train()(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


@torch.inference_mode()
def test_a_block_adds_to_what_it_is_given_and_its_recurrence_sees_it_normalised():
    torch.manual_seed(0)
    block = Block(PLAIN).eval()
    x, h, c = torch.randn(2, 5, 8), torch.zeros(2, 12), torch.zeros(2, 12)
    assert_close(block(3.0 * x + 1.0, h, c)[1], block(x, h, c)[1], atol=1e-4, rtol=1e-4)
    nn.init.zeros_(block.project.weight)
    nn.init.zeros_(block.project.bias)
    by_itself, _, _ = block(x, h, c)  # without the recurrence, each event is by itself
    assert_close(by_itself, block(x.flip(1), h, c)[0].flip(1))
    assert not torch.allclose(by_itself, x, atol=1e-2)
    last = [part for part in block.feed_forward if isinstance(part, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    assert_close(block(x, h, c)[0], x)


@torch.inference_mode()
def test_memories_are_the_plain_recurrence():
    memories = Memories(PLAIN)
    x, m = torch.randn(2, 30, 8), torch.randn(2, 3, 8)
    normalised, raw = memories(x, m)

    kept = torch.tensor([0.5 ** (1 / half_life) for half_life in (2.0, 16.0, 128.0)]).view(3, 1)
    for t in range(30):
        m = kept * m + (1 - kept) * x[:, t, None]
        assert_close(raw[:, t], m, atol=1e-5, rtol=1e-5)
        assert_close(normalised[:, t], memories.norm(m), atol=1e-4, rtol=1e-4)


# The items' content


def known(text: list[list[float]] = (), labels: tuple[tuple[int, ...], ...] = ()) -> Content:
    """The content of items 1, 2 ..., behind padding; labels are numbers from 0."""
    rows = [[0.0] * len(text[0]), *text] if text else [[]] * (len(labels) + 1)
    found = labels or ((),) * len(text)
    return Content(
        text=np.array(rows, np.float32).reshape(len(rows), -1),
        image=np.zeros((len(rows), 0), np.float32),
        labels=np.array([label for one in found for label in one], np.int64),
        offsets=np.cumsum([0, 0, *map(len, found)]).astype(np.int64),
        names=tuple("abc")[: 1 + max((label for one in found for label in one), default=-1)],
        price_edges=np.zeros(0),
    )


def test_an_items_vector_joins_its_number_with_its_text():
    table = ItemTable(ModelConfig(3, dim=4), known(text=[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    vectors, weight = table(), table.content.text_weight
    assert_close(vectors[1], table.ids.weight[1] + weight[0])
    assert_close(vectors[2], table.ids.weight[2] + weight[1])
    assert_close(vectors[3], table.ids.weight[3])  # an item without text
    assert vectors[0].tolist() == [0.0] * 4  # padding


def test_an_items_vector_joins_its_number_with_its_labels_each_counting_the_less_the_more_there_are():
    table = ItemTable(ModelConfig(3, dim=4), known(labels=((0,), (0, 1, 2, 1), ())))
    vectors, label = table(), table.content.label_embedding
    assert_close(vectors[1], table.ids.weight[1] + label[0])
    assert_close(vectors[2], table.ids.weight[2] + (label[0] + 2 * label[1] + label[2]) / 2)
    assert_close(vectors[3], table.ids.weight[3])
    assert vectors[0].tolist() == [0.0] * 4


def test_the_content_is_learnt_from_but_not_changed():
    table = ItemTable(ModelConfig(3, dim=4), known(text=[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    table().sum().backward()
    assert table.content.text_weight.grad.abs().sum() > 0
    assert set(dict(table.named_parameters())) == set(table.state_dict())  # every checkpoint would hold it again
    assert not {"content.text", "content.labels"} & set(table.state_dict())


@torch.inference_mode()
def test_a_folded_encoder_needs_no_content_and_says_the_same():
    torch.manual_seed(0)
    config = ModelConfig(5, dim=8, hidden=8, use_types=True, use_gaps=True)
    model = Encoder(config, known(text=torch.randn(5, 3).tolist())).eval()
    folded = model.folded(config, torch.zeros(0, 8))
    assert folded.items.content is None
    assert_close(folded.item_embeddings(), model.item_embeddings())
    events = (torch.tensor([[1, 5, 2]]), torch.tensor([[1, 4, 1]]), torch.rand(1, 3), torch.zeros(1, 3))
    for found, expected in zip(
        folded(*events, folded.initial_state(1)), model(*events, model.initial_state(1)), strict=True
    ):
        assert_close(found, expected)


@torch.inference_mode()
def test_a_folded_encoder_knows_new_items_behind_the_others():
    torch.manual_seed(0)
    config = ModelConfig(5, dim=8, hidden=8)
    model = Encoder(config).eval()
    new = torch.eye(8)[:2]
    folded = model.folded(config, new)
    assert_close(folded.item_embeddings()[:6], model.item_embeddings())
    assert_close(folded.item_embeddings()[6:], new)
    lengths = torch.linalg.vector_norm(folded.items.ids.weight, dim=1)
    assert_close(lengths[6], lengths[1:6].mean())  # to the encoder they are as large as others
    viewed = (torch.tensor([1, 7]), torch.ones(2, dtype=torch.int64), torch.zeros(2), torch.zeros(2))
    _, _, items, _, _ = ServingEncoder(folded)(*joined(viewed), folded.initial_state(1), 7)
    assert sorted(items[0].tolist()) == [1, 2, 3, 4, 5, 6, 7]


def test_what_is_no_input_is_not_trained():
    """Processes that train together would wait for its gradient."""
    trained = {name for name, weight in Encoder(ModelConfig(3, dim=4)).named_parameters() if weight.requires_grad}
    assert not trained & {"type_embedding.weight", "gap_embedding.weight", "value_weight"}
