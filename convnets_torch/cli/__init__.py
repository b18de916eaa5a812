"""The command line: each command parses options, calls a library function and prints. Does not import torch."""
