"""The first five minutes: train, publish, serve, replay a log and look at recommendations."""
