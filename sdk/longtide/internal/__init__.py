"""Wire types private to the SDK."""
