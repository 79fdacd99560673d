"""A program that traces: it makes one picture within a span of its own, and sends its spans."""

from __future__ import annotations

import asyncio
import sys

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from ditcast_client import Client


async def main(address: str, request_id: str) -> None:
    """Generate under a span."""
    tracer = trace.get_tracer("program")
    with tracer.start_as_current_span("my program"):
        async with Client(address) as client:
            generation = client.generate(
                prompt="a", request_id=request_id, width=64, height=64, num_inference_steps=2
            )
            await generation.result()


provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
asyncio.run(main(*sys.argv[1:]))
provider.shutdown()
