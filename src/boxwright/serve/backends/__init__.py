"""Python backends for Triton servers that lack the C++ ones: a folder each, with a `model.py`.

Triton's Python stub loads them, not Boxwright; beside each `model.py` lies a copy of `joining.py`.
"""
