"""Where the hosts of a training meet, and by which network interface they reach each other."""

import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from posefoundry.errors import PosefoundryError

# Where the hosts of one training meet, `host:port`; an address is no property of a training, so params.yaml has none.
RENDEZVOUS = "POSEFOUNDRY_RDZV"
DEFAULT_PORT = 29500


@dataclass(frozen=True)
class Meeting:
    """Where the hosts meet, as seen from this one."""

    endpoint: str  # host:port; port 0 is any free one
    is_here: bool  # the meeting point, and with it rank 0, is on this host
    own_address: str  # by which the other hosts reach this one


def find_meeting(n_nodes: int, environment: Mapping[str, str]) -> Meeting:
    """Finds where the hosts meet: POSEFOUNDRY_RDZV, else MASTER_ADDR and MASTER_PORT; a single host meets itself.

    Raises:
        PosefoundryError: Several hosts, and no address is given or it cannot be resolved.
    """
    if n_nodes == 1:
        return Meeting("localhost:0", is_here=True, own_address="127.0.0.1")
    given = environment.get(RENDEZVOUS) or ":".join(
        environment[name] for name in ("MASTER_ADDR", "MASTER_PORT") if environment.get(name)
    )
    host, _, port_text = given.rpartition(":") if ":" in given else (given, "", str(DEFAULT_PORT))
    if not host or not port_text.isdigit():
        raise PosefoundryError(
            f"train.nodes is {n_nodes}: expected {RENDEZVOUS}=host:port (or MASTER_ADDR and MASTER_PORT) in the "
            f"environment, got {given or 'nothing'!r}. Name the host that is to write the weights, the same everywhere."
        )
    try:
        address = socket.getaddrinfo(host, int(port_text), socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
    except OSError as error:
        raise PosefoundryError(f"{RENDEZVOUS}: the host {host!r} is unknown here: {error}.") from None
    is_here = _is_own(str(address))
    return Meeting(f"{host}:{port_text}", is_here, str(address) if is_here else _own_address_towards(str(address)))


def _is_own(address: str) -> bool:
    """Only an address of this host can be bound."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _own_address_towards(address: str) -> str:
    """Connecting a datagram socket sends nothing, but chooses the way, and with it the address of this end."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, DEFAULT_PORT))
        except OSError as error:
            raise PosefoundryError(f"{RENDEZVOUS}: no route from this host to {address}: {error}.") from None
        return str(probe.getsockname()[0])


def interface_of(address: str) -> str | None:
    """Returns the name of the network interface that has an IPv4 address, on Linux."""
    if sys.platform != "linux":
        return None
    import fcntl

    get_interface_address = 0x8915  # SIOCGIFADDR
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without an address
                answer = fcntl.ioctl(asking, get_interface_address, name.encode()[:15].ljust(256, b"\0"))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None
