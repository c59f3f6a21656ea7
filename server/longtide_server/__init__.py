"""The Longtide server and everything offline: training, evaluation, publishing, serving."""
