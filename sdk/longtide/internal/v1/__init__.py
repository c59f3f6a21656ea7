"""Generated from proto/longtide/internal/v1."""
