"""A snapshot at work: tried, swapped in, answering."""
