"""Measurements on one GPU with the real architectures and random weights. Needs no checkpoint and no network.

Speed and memory do not depend on what the weights are, so the published configurations are built in code, on the
device. See `python -m tests.bench gpu --help`.
"""
