"""Graph surgery: ModelProto in, ModelProto out, one rewrite per file.

Nothing here touches files, clocks or devices, but `io`.
"""
