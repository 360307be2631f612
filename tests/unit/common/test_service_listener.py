"""Socket options that connections inherit from the listener of the HTTP face."""

import socket
import sys

import pytest
from vold_service.serve import STALLED_READER_SECONDS, _bind_listener


@pytest.mark.skipif(sys.platform != "linux", reason="inheritance of these options is Linux's")
def test_connections_have_nodelay_and_keepalive():
    with _bind_listener("127.0.0.1:0") as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == STALLED_READER_SECONDS * 1000
