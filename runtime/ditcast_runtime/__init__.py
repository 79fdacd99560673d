"""The engine: one accelerated pipeline on one or many ranks; knows neither gRPC nor protobuf."""
