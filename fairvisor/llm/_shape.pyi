"""The shape of a JSON text, measured in one pass of C before a parser makes objects of it (`_shape.c`)."""

def count_members(text: bytes, /) -> int:
    """Return how many names stand at the top of a JSON object, repeated ones included; -1 for too many parts."""
