"""What Fairvisor Edge knows about LLM providers: requests, token estimates, usage, error shapes.

    request.py      a JSON body -> the facts a limit needs: model, completion asked for, choices
    _shape.c        how large a JSON object is, before it is parsed
    forms.py        the fields of a form
    facts.py        what the fields say; fields.py has their names
    paths.py        what the path says of the request in it
    models.py       the many spellings of a model's name -> one
    estimate.py     prompt tokens of a request, before the provider has counted them
    _simple_word.c  the tokens of a text, counted in one pass
    usage.py        what the provider counted, as disjoint kinds; weights
    reservation.py  what was taken for a request, as a signed token that settles it later
    dialect.py      a refusal in the shape of the provider whose SDK asked
    stream.py       usage out of a response that arrives in pieces
    scan.py         usage out of a JSON document that is too large or broken to parse

Nothing here does I/O, reads a clock, or knows policies, counters or gateways.
"""
