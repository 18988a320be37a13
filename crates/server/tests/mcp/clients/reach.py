"""Where the server of a test is: over HTTP, and over stdio through `baton mcp`."""

import os
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import httpx2
from mcp import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

URL = os.environ["MCP_URL"]
TOKEN = os.environ["MCP_TOKEN"]
ORIGIN = "{0.scheme}://{0.netloc}".format(urlsplit(URL))
# Longer than anything here takes; hit only when something hangs.
PATIENCE_S = 60


async def server(transport: str, stack: AsyncExitStack):
    """What the SDK takes for the server, over this transport."""
    if transport == "stdio":
        return StdioServerParameters(
            command=os.environ["BATON"],
            args=["mcp", "--connect", ORIGIN],
            env={"CLAUDE_WEBHOOK_SECRET": TOKEN},
        )
    client = httpx2.AsyncClient(
        headers={"Authorization": f"Bearer {TOKEN}"}, timeout=PATIENCE_S
    )
    await stack.enter_async_context(client)
    return streamable_http_client(URL, http_client=client)
