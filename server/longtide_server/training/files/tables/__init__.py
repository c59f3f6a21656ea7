"""Reads a table file (CSV, JSON lines, Parquet) into columns of distinct values, and says which row of it is wrong."""
