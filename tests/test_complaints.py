"""What goes wrong on requests is logged, and no flood of it floods the log."""

from __future__ import annotations

import pytest
from edge import moment

from fairvisor.http.complaints import Complaints


def test_a_flood_of_peers_makes_a_bounded_number_of_lines(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints()
    for number in range(5000):
        complaints.stranger(f"2001:db8::{number:x}", moment(number / 100))
    assert len(caplog.messages) == 257
    complaints.stranger("2001:db8:1::1", moment(109))
    assert caplog.messages[257:] == [
        "peer 2001:db8:1::1 is not in FAIRVISOR_TRUSTED_PEERS (1 times since last told)"
    ]


def test_a_peer_that_goes_on_is_told_once_a_minute_with_its_number(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints()
    for second in range(61):
        complaints.stranger("2001:db8::1", moment(second))
    assert [message.rpartition("(")[2] for message in caplog.messages] == [
        "1 times since last told)",
        "60 times since last told)",
    ]
