"""The wire contract of vold: protobuf messages and gRPC stubs, one package per version."""
