"""Triton: model repositories, and a real server on them."""
