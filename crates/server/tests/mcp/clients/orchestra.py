"""What a client of Baton does, with the official Python SDK, in both revisions.

    python orchestra.py http|stdio     with MCP_URL, MCP_TOKEN, BATON in the environment
"""

import asyncio
import sys
import warnings
from contextlib import AsyncExitStack, asynccontextmanager

from mcp import Client, MCPError
from mcp_types import ResourceTemplateReference, ResourceUpdatedNotification

from reach import PATIENCE_S, server

# Subscriptions of the older revision are on their way out of the SDK.
warnings.simplefilter("ignore")

REPOSITORY = "owner/repo"
NOBODY = "00000000-0000-7000-8000-ffffffffffff"
TYPES = ["analysis", "implementation", "testing", "review", "coordination"]


async def conduct(client: Client, updated: asyncio.Event) -> None:
    tools = {tool.name for tool in (await client.list_tools()).tools}
    assert {"create_claude_session", "wait_for_session", "orchestrate"} <= tools, tools
    assert client.instructions and len(client.instructions) < 4000

    async def create(kind: str, requirements: str, dependencies: list[str]) -> str:
        made = await done(
            client,
            "create_claude_session",
            sessionType=kind,
            repository=REPOSITORY,
            requirements=requirements,
            dependencies=dependencies,
        )
        return made["sessionId"]

    analysis = await create("analysis", "See how it is built", [])
    storage = await create("implementation", "Build the storage", [analysis])
    formatter = await create("implementation", "Build the formatter", [analysis])
    tests = await create("testing", "Test both together", [storage, formatter])
    everything = [tests, formatter, storage, analysis]

    # Nobody has started anything, and so it would not help to wait.
    waited = await done(
        client, "wait_for_session", sessionIds=[tests], timeoutSeconds=30
    )
    assert waited["done"] is False and ids(waited["pending"]) == [tests], waited
    assert "start_claude_session" in waited["attention"][0], waited

    async with watching(client, f"baton://sessions/{tests}", updated):
        for session_id in everything:
            await done(client, "start_claude_session", sessionId=session_id)
        heard = asyncio.Event()

        async def progress(_progress: float, _total: float | None, _message: str | None):
            heard.set()

        waited = await done(
            client,
            "wait_for_session",
            progress,
            sessionIds=everything,
            mode="all",
            timeoutSeconds=40,
        )
        assert waited["done"] is True, waited
        assert ids(waited["finished"]) == sorted(everything), waited
        assert heard.is_set(), "a wait says at once how it goes"
        await asyncio.wait_for(updated.wait(), PATIENCE_S)

    output = await done(client, "get_session_output", sessionId=tests)
    assert output["status"] == "completed" and "testing" in output["summary"], output

    session = await client.read_resource(f"baton://sessions/{tests}")
    assert tests in session.contents[0].text
    log = await client.read_resource(f"baton://sessions/{tests}/log")
    assert log.contents[0].text
    try:
        await client.read_resource(f"baton://sessions/{NOBODY}")
        raise AssertionError("there is no such session")
    except MCPError:
        pass

    completion = await client.complete(
        ResourceTemplateReference(type="ref/resource", uri="baton://sessions/{id}"),
        {"name": "id", "value": tests[:-1]},
    )
    assert tests in completion.completion.values, completion
    prompt = await client.get_prompt(
        "orchestrate", {"goal": "Add a login", "repository": REPOSITORY}
    )
    assert "Add a login" in prompt.messages[0].content.text

    unknown = await failed(client, "get_session_status", sessionId=NOBODY)
    assert NOBODY in unknown, unknown
    wrong = await failed(
        client,
        "create_claude_session",
        sessionType="documentation",
        repository=REPOSITORY,
        requirements="Write it down",
    )
    assert all(kind in wrong for kind in TYPES), wrong
    # As clients of other servers call the same.
    made = await done(
        client,
        "create_session",
        session_type="review",
        repository=REPOSITORY,
        requirements="Look at it",
    )
    cancelled = await done(client, "cancel_session", session_id=made["sessionId"])
    assert cancelled["status"] == "cancelled", cancelled


@asynccontextmanager
async def watching(client: Client, uri: str, updated: asyncio.Event):
    """Sets `updated` at each change of the resource, in the way of the revision."""
    if client.protocol_version == "2025-11-25":
        await client.subscribe_resource(uri)
        yield
        await client.unsubscribe_resource(uri)
        return

    async def listen(subscription):
        async for event in subscription:
            assert event.uri == uri, event
            updated.set()

    async with client.listen(resource_subscriptions=[uri]) as subscription:
        listening = asyncio.create_task(listen(subscription))
        yield
        listening.cancel()


async def done(client: Client, tool: str, progress=None, **arguments) -> dict:
    """A result that is no error; what it says in fields."""
    result = await client.call_tool(tool, arguments, progress_callback=progress)
    assert not result.is_error, f"{tool} failed: {result.content}"
    return result.structured_content


async def failed(client: Client, tool: str, **arguments) -> str:
    """A result that is an error; its text."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error, f"{tool} went through: {result}"
    return "\n".join(block.text for block in result.content)


def ids(sessions: list) -> list[str]:
    return sorted(
        session if isinstance(session, str) else session["sessionId"]
        for session in sessions
    )


async def main() -> None:
    for mode, version in [("legacy", "2025-11-25"), ("auto", "2026-07-28")]:
        updated = asyncio.Event()

        async def hear(message) -> None:
            if isinstance(message, ResourceUpdatedNotification):
                updated.set()

        async with AsyncExitStack() as stack:
            reached = await server(sys.argv[1], stack)
            client = await stack.enter_async_context(
                Client(reached, mode=mode, message_handler=hear)
            )
            assert client.protocol_version == version, client.protocol_version
            assert client.server_info.name == "baton"
            await conduct(client, updated)


asyncio.run(main())
