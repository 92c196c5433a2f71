"""What the tests of the atlas are given."""

import pytest

from tests.atlas.chat_server import Server


@pytest.fixture
def serve():
    servers = []

    def start(answer):
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
