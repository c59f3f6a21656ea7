"""Spans of RPCs and their stages, sent by a real server to a collector that reads OTLP."""

import asyncio
import threading
import time
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2
from tests.redis_servers import free_port

from longtide.v1 import events_pb2, events_pb2_grpc, recommendation_pb2, recommendation_pb2_grpc
from longtide_server.app import running
from longtide_server.encoder.hosted import LocalEncoder
from longtide_server.errors import EncoderUnavailable, InvalidInput

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
SOON_S = 10.0
RECOMMEND = "longtide.v1.RecommendationService/Recommend"


class Collector(ThreadingHTTPServer):
    """Takes in OTLP over HTTP; `spans` and `resources` are what arrived."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Taking)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.paths, self.resources, self.spans = [], [], []


class Taking(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.paths.append(self.path)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.server.resources.append(attributes(resource.resource))
            for scope in resource.scope_spans:
                self.server.spans.extend(scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        """Into the test's output it does not belong."""


def attributes(described):
    return {
        one.key: getattr(one.value, one.value.WhichOneof("value")) for one in described.attributes if one.key[0] != "_"
    }


@pytest.fixture
def collector():
    server = Collector()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@asynccontextmanager
async def traced(settings):
    """Stubs of a server; when it has stopped, the collector has every span."""
    async with running(settings) as address, grpc.aio.insecure_channel(address) as channel:
        yield recommendation_pb2_grpc.RecommendationServiceStub(channel), events_pb2_grpc.EventServiceStub(channel)


def event(event_id, item_id="item-3"):
    sent = events_pb2.Event(event_id=event_id, user_id="ann", item_id=item_id, type=events_pb2.EVENT_TYPE_VIEW)
    sent.event_time.FromSeconds(1_700_000_000)
    return sent


def batch(*events):
    return events_pb2.WriteEventsRequest(events=events)


def ask(user_id="ann", **fields):
    return recommendation_pb2.RecommendRequest(user_id=user_id, **fields)


def named(collector, name):
    return [span for span in collector.spans if span.name == name]


async def test_a_call_goes_on_from_its_callers_trace_and_its_stages_are_in_it(config, collector):
    before_ns = time.time_ns()
    async with traced(config(otlp_endpoint=collector.url)) as (recommendations, events):
        await events.WriteEvents(batch(event("e1")))
        caller = (("traceparent", f"00-{TRACE}-{CALLER}-01"), ("other-bin", b"\0"))
        await recommendations.Recommend(ask(), metadata=caller)
    after_ns = time.time_ns()

    [call] = named(collector, RECOMMEND)
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (TRACE, CALLER)
    assert call.kind == trace_pb2.Span.SPAN_KIND_SERVER
    assert call.status.code == trace_pb2.Status.STATUS_CODE_UNSET
    assert attributes(call) == {
        "rpc.system": "grpc",
        "rpc.service": "longtide.v1.RecommendationService",
        "rpc.method": "Recommend",
        "rpc.grpc.status_code": 0,
    }
    stages = [span for span in collector.spans if span.parent_span_id == call.span_id]
    assert {span.name for span in stages} == {"state", "encoder", "neighbors", "fusion"}
    assert len(stages) == 4
    assert {span.trace_id.hex() for span in stages} == {TRACE}
    assert before_ns <= call.start_time_unix_nano < call.end_time_unix_nano <= after_ns
    for span in stages:  # the clocks of a moment and of a duration are two
        assert call.start_time_unix_nano - 1e6 <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= call.end_time_unix_nano + 1e6

    [write] = named(collector, "longtide.v1.EventService/WriteEvents")
    assert not write.parent_span_id
    assert write.trace_id.hex() != TRACE
    assert len(collector.spans) == 2 + 4


async def test_the_server_names_itself_and_sends_to_the_usual_path(config, collector):
    async with traced(config(otlp_endpoint=f"{collector.url}/")) as (recommendations, _):
        await recommendations.Recommend(ask())
    assert set(collector.paths) == {"/v1/traces"}
    assert collector.resources[0]["service.name"] == "longtide"


async def test_the_environment_may_name_the_service(config, collector, monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop-recommender")
    async with traced(config(otlp_endpoint=f"{collector.url}/v1/traces")) as (recommendations, _):
        await recommendations.Recommend(ask())
    assert set(collector.paths) == {"/v1/traces"}
    assert collector.resources[0]["service.name"] == "shop-recommender"


async def test_a_kept_answer_has_no_stages(config, collector):
    async with traced(config(otlp_endpoint=collector.url)) as (recommendations, _):
        await recommendations.Recommend(ask())
        await recommendations.Recommend(ask())
    assert len(named(collector, RECOMMEND)) == 2
    assert len(named(collector, "fusion")) == 1


async def test_calls_side_by_side_keep_their_stages_apart(config, collector):
    async with traced(config(otlp_endpoint=collector.url)) as (recommendations, _):
        await asyncio.gather(*(recommendations.Recommend(ask(f"user-{n}")) for n in range(8)))
    calls = {span.span_id for span in named(collector, RECOMMEND)}
    assert len(calls) == 8
    assert {span.parent_span_id for span in named(collector, "fusion")} == calls


async def test_a_call_that_fails_says_how(config, collector, monkeypatch):
    async def broken(self, *_):
        raise RuntimeError("odd")

    async with traced(config(otlp_endpoint=collector.url)) as (recommendations, _):
        with pytest.raises(grpc.aio.AioRpcError):
            await recommendations.Recommend(ask(""))
        monkeypatch.setattr("longtide_server.serving.responses.Responses.recommend", broken)
        with pytest.raises(grpc.aio.AioRpcError):
            await recommendations.Recommend(ask())
    wrong, failed = named(collector, RECOMMEND)
    assert attributes(wrong)["rpc.grpc.status_code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert wrong.status.code == trace_pb2.Status.STATUS_CODE_UNSET  # it is the caller who was wrong
    assert attributes(failed)["rpc.grpc.status_code"] == grpc.StatusCode.INTERNAL.value[0]
    assert failed.status.code == trace_pb2.Status.STATUS_CODE_ERROR


async def test_what_an_answer_had_to_do_without_is_in_its_span(config, collector, monkeypatch):
    async def down(self, batch, timeout_s):
        raise EncoderUnavailable("down")

    async with traced(config(otlp_endpoint=collector.url)) as (recommendations, events):
        await events.WriteEvents(batch(event("e1")))
        monkeypatch.setattr(LocalEncoder, "encode", down)
        assert (await recommendations.Recommend(ask())).degraded
    [call] = named(collector, RECOMMEND)
    assert attributes(call)["longtide.degraded.encoder"] is True


async def test_a_stream_is_one_span_however_many_rows_it_has(config, collector):
    message = recommendation_pb2.StreamRecommendRequest(requests=[ask(f"user-{n}") for n in range(20)])
    async with traced(config(otlp_endpoint=collector.url)) as (recommendations, _):
        caller = (("traceparent", f"00-{TRACE}-{CALLER}-01"),)
        answers = recommendations.StreamRecommend(iter([message] * 2), metadata=caller)
        assert [len(answer.results) async for answer in answers] == [20, 20]
    [span] = collector.spans
    assert span.name == "longtide.v1.RecommendationService/StreamRecommend"
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, CALLER)


async def test_a_caller_who_does_not_sample_is_not_traced(config, collector):
    async with traced(config(otlp_endpoint=collector.url)) as (recommendations, _):
        await recommendations.Recommend(ask(), metadata=(("traceparent", f"00-{TRACE}-{CALLER}-00"),))
    assert collector.spans == []


async def test_metrics_are_counted_beside_traces(config, collector):
    port = free_port()
    async with traced(config(otlp_endpoint=collector.url, metrics=f"127.0.0.1:{port}")) as (recommendations, _):
        await recommendations.Recommend(ask())
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        page = (await reader.read()).decode()
        writer.close()
    assert 'longtide_requests_total{code="OK",rpc="Recommend"} 1.0' in page
    assert 'longtide_stage_duration_seconds_count{stage="fusion"} 1.0' in page


async def test_a_collector_that_is_away_costs_no_answer_and_does_not_hold_up_the_end(config):
    settings = config(otlp_endpoint=f"http://127.0.0.1:{free_port()}")
    async with traced(settings) as (recommendations, _):
        assert (await recommendations.Recommend(ask())).recommendations
        begun_s = time.monotonic()
    assert time.monotonic() - begun_s < SOON_S


@pytest.mark.parametrize("endpoint", ["localhost:4318", "http://", "grpc://localhost:4317"])
async def test_an_endpoint_that_is_no_url_is_named(config, endpoint):
    with pytest.raises(InvalidInput, match=r"otlp_endpoint: .* is not a URL such as http://localhost:4318"):
        async with running(config(otlp_endpoint=endpoint)):
            pass
