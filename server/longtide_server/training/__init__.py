"""Offline: logs, training, evaluation and publishing. The only part of the server package that imports torch."""
