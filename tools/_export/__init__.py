"""Exports: graphs of models, ONNX files and PyTorch's own programs, and the checks that they pass."""
