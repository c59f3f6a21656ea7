"""Generated from proto/longtide/v1: the public contract."""
