"""Where hosts meet."""

import sys

import pytest

from posefoundry.errors import PosefoundryError
from posefoundry.training.meeting import find_meeting, interface_of


def test_where_hosts_meet() -> None:
    assert find_meeting(1, {}).endpoint == "localhost:0"
    here = find_meeting(2, {"POSEFOUNDRY_RDZV": "127.0.0.1:1234", "MASTER_ADDR": "elsewhere"})
    assert (here.endpoint, here.is_here, here.own_address) == ("127.0.0.1:1234", True, "127.0.0.1")
    assert find_meeting(2, {"MASTER_ADDR": "127.0.0.1"}).endpoint == "127.0.0.1:29500"
    assert find_meeting(2, {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "7"}).endpoint == "127.0.0.1:7"
    with pytest.raises(PosefoundryError, match=r"expected POSEFOUNDRY_RDZV=host:port .* got 'nothing'"):
        find_meeting(2, {})
    with pytest.raises(PosefoundryError, match=r"got '127\.0\.0\.1:http'"):
        find_meeting(2, {"POSEFOUNDRY_RDZV": "127.0.0.1:http"})
    with pytest.raises(PosefoundryError, match=r"'no-such-host\.invalid' is unknown here"):
        find_meeting(2, {"POSEFOUNDRY_RDZV": "no-such-host.invalid:1234"})


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for its interfaces")
def test_the_interface_of_an_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.9") is None
