"""The tokens of a text by the rules of `simple_word`, counted in one pass of C; they stand in `_simple_word.c`."""

def count_tokens(text: bytes, /) -> int:
    """Tokens of UTF-8 `text`: two or three nanoseconds for each byte."""
