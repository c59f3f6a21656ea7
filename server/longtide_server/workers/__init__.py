"""Several server processes behind one port (`longtide serve --workers N`): a supervisor, and the workers it starts.

The supervisor holds what there is one of: the data directory, the port's reservation, TorchServe, the expiring of old
events, the page of metrics. It answers no calls. A worker is a whole server in a process of its own; the kernel spreads
new connections over those that listen. Both talk over a socket that the worker inherits, and whose end is the end of
the one at its other end.
"""
