"""A wait as a task: the official Python SDK with the tasks extension of revision 2026-07-28.

    python tasks.py http|stdio     with MCP_URL, MCP_TOKEN, BATON in the environment
"""

import asyncio
import sys
from contextlib import AsyncExitStack
from typing import Any, Literal

from mcp import Client
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from mcp_types import CallToolResult, Request, RequestParams, Result

from reach import PATIENCE_S, server

EXTENSION = "io.modelcontextprotocol/tasks"


class CreatedTask(Result):
    """What a call answers that goes on as a task."""

    result_type: Literal["task"]
    task_id: str
    status: str
    poll_interval_ms: int
    ttl_ms: int | None


class Named(RequestParams):
    task_id: str


class GetTask(Request[Named, Literal["tasks/get"]]):
    name_param = "taskId"
    method: Literal["tasks/get"] = "tasks/get"
    params: Named


class CancelTask(Request[Named, Literal["tasks/cancel"]]):
    name_param = "taskId"
    method: Literal["tasks/cancel"] = "tasks/cancel"
    params: Named


class Task(Result):
    task_id: str
    status: str
    result: dict[str, Any] | None = None


class Tasks(ClientExtension):
    """Asks for a task until it is over, as often as the server says."""

    identifier = EXTENSION

    def __init__(self) -> None:
        self.created: asyncio.Queue[CreatedTask] = asyncio.Queue()

    def claims(self):
        return [ResultClaim(result_type="task", model=CreatedTask, resolve=self.resolve)]

    async def resolve(self, task: CreatedTask, context: ClaimContext) -> CallToolResult:
        self.created.put_nowait(task)
        while True:
            request = GetTask(params=Named(task_id=task.task_id))
            now = await context.session.send_request(request, Task)
            if now.status == "completed":
                return CallToolResult.model_validate(now.result)
            if now.status == "cancelled":
                return CallToolResult(content=[], is_error=True)
            assert now.status == "working", now
            await asyncio.sleep(min(task.poll_interval_ms, 200) / 1000)


async def main() -> None:
    async with AsyncExitStack() as stack:
        tasks = Tasks()
        reached = await server(sys.argv[1], stack)
        client = await stack.enter_async_context(Client(reached, extensions=[tasks]))

        # Nobody runs anything here, so that it lasts until the session is cancelled.
        session_id = await create(client)
        waiting, task = await wait(client, tasks, session_id)
        assert task.status == "working" and task.poll_interval_ms > 0, task
        assert not waiting.done()
        cancelled = await client.call_tool("cancel_session", {"sessionId": session_id})
        assert not cancelled.is_error, cancelled
        waited = (await asyncio.wait_for(waiting, PATIENCE_S)).structured_content
        assert waited["done"] is True, waited
        assert waited["finished"][0]["sessionId"] == session_id, waited
        assert waited["finished"][0]["status"] == "cancelled", waited

        # A wait that is cancelled leaves its session alone.
        session_id = await create(client)
        waiting, task = await wait(client, tasks, session_id)
        await client.session.send_request(
            CancelTask(params=Named(task_id=task.task_id)), Result
        )
        assert (await asyncio.wait_for(waiting, PATIENCE_S)).is_error
        status = await client.call_tool("get_session_status", {"sessionId": session_id})
        assert status.structured_content["status"] == "queued", status


async def wait(client: Client, tasks: Tasks, session_id: str):
    """A wait that goes on, and its task."""
    arguments = {"sessionIds": [session_id], "timeoutSeconds": 600}
    waiting = asyncio.create_task(client.call_tool("wait_for_session", arguments))
    return waiting, await asyncio.wait_for(tasks.created.get(), PATIENCE_S)


async def create(client: Client) -> str:
    made = await client.call_tool(
        "create_claude_session",
        {
            "sessionType": "analysis",
            "repository": "owner/repo",
            "requirements": "See how it is built",
            "autoStart": True,
        },
    )
    assert not made.is_error, made
    return made.structured_content["sessionId"]


asyncio.run(main())
