"""Metrics and traces: watches the other parts from outside."""
