from __future__ import annotations

import pytest

from connections.models import Connection
from sessions.models import ChatSession
from tests.builders import make_connection
from workspaces.models import User, Workspace


@pytest.fixture
def connection(db: None) -> Connection:
    return make_connection("local", is_default=True)


@pytest.fixture
def chat(workspace: Workspace, bob: User, connection: Connection) -> ChatSession:
    """bob's empty session."""
    return ChatSession.objects.create(workspace=workspace, owner=bob)
