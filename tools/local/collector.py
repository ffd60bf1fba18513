"""A small OpenTelemetry collector: takes OTLP over gRPC, keeps the newest traces in memory, shows one over HTTP."""

import argparse
from collections import OrderedDict
from typing import Any

import grpc
from aiohttp import web
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as pb_grpc

_TRACES_AT_MOST, _SPANS_AT_MOST = 5_000, 500


class Collector(pb_grpc.TraceServiceServicer):
    """Keeps spans by trace; the oldest trace gives way."""

    def __init__(self) -> None:
        self.traces: OrderedDict[str, list[dict[str, Any]]] = OrderedDict()

    async def Export(self, request: pb.ExportTraceServiceRequest, context: Any) -> pb.ExportTraceServiceResponse:
        """Take spans in."""
        for resource in request.resource_spans:
            names = {a.key: a.value.string_value for a in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self._keep(names.get("service.name", "?"), span)
        return pb.ExportTraceServiceResponse()

    def _keep(self, service: str, span: Any) -> None:
        spans = self.traces.setdefault(span.trace_id.hex(), [])
        if len(spans) < _SPANS_AT_MOST:
            spans.append(
                {
                    "service": service, "name": span.name, "span_id": span.span_id.hex(), "parent_id": span.parent_span_id.hex(),
                    "start_ns": span.start_time_unix_nano, "end_ns": span.end_time_unix_nano,
                    "events": [{"name": event.name, "at_ns": event.time_unix_nano} for event in span.events],
                }
            )  # fmt: skip
        while len(self.traces) > _TRACES_AT_MOST:
            self.traces.popitem(last=False)


def main() -> None:
    """Serve on loopback until stopped."""
    parser = argparse.ArgumentParser(description="Sightline's laptop trace collector.")
    parser.add_argument("--otlp-port", type=int, required=True)
    parser.add_argument("--http-port", type=int, required=True)
    arguments = parser.parse_args()
    collector = Collector()
    servers: list[grpc.aio.Server] = []  # a server without a reference stops

    async def one(request: web.Request) -> web.Response:
        return web.json_response(collector.traces.get(request.match_info["trace_id"], []))

    async def start(_: web.Application) -> None:
        server = grpc.aio.server()
        pb_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
        server.add_insecure_port(f"127.0.0.1:{arguments.otlp_port}")
        await server.start()
        servers.append(server)

    application = web.Application()
    application.router.add_get("/traces/{trace_id}", one)
    application.on_startup.append(start)
    web.run_app(application, host="127.0.0.1", port=arguments.http_port, print=None)


if __name__ == "__main__":
    main()
