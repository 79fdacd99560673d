"""The gRPC edge: asyncio and protobuf, never torch."""
