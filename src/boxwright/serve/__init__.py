"""Serving with NVIDIA Triton: model repositories, and what runs inside of the server."""
