"""What speaks gRPC: the servicers, and protobuf read into domain values and written from them."""
