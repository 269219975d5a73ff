"""Who sent a request.

    addresses.py   the client's address behind trusted proxies
    networks.py    networks that addresses are in
    tokens.py      bearer tokens: verified, remembered, and their claims as text
    keys.py        what a token is verified with, and with which algorithms only
    jwks.py        keys outside the bundle: in a file or behind a URL
    fetch.py       one fetch of a URL
    fetcher.py     when key sets are fetched, by one process for all
    stored.py      key sets as they were fetched last
    places.py      country, network and Tor exit of an address; what a gateway says of them
    bots.py        bots by their user agent
    watched.py     files that are followed as they change
    recent.py      the bounded map behind every cache here
    sources.py     `Identity`, which is all of it in one object
    refresher.py   the thread that keeps it up to date

Nothing that a request asks here does I/O, and nothing here knows policies, counters or HTTP.
"""

from fairvisor.identity.addresses import Client
from fairvisor.identity.fetch import Web
from fairvisor.identity.fetcher import KeyFetcher
from fairvisor.identity.refresher import Refresher
from fairvisor.identity.sources import Identity

__all__ = ["Client", "Identity", "KeyFetcher", "Refresher", "Web"]
