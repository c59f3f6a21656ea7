"""Offline: logs, training, evaluation and publishing; and files read into, or written from, a running server.

The only part of the server package that imports torch.
"""
