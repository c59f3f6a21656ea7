"""The encoder and how it learns."""
