// Waits that come to nothing: their time runs out, or their client has enough of them.
//
//   node patience.mjs http|stdio     with MCP_URL, MCP_TOKEN, BATON in the environment
import assert from 'node:assert/strict';
import { Client, StreamableHTTPClientTransport } from '@modelcontextprotocol/client';
import { StdioClientTransport } from '@modelcontextprotocol/client/stdio';
import { bridge, bearer, url } from './reach.mjs';

const transport =
  process.argv[2] === 'stdio'
    ? new StdioClientTransport({ ...bridge, stderr: 'inherit' })
    : new StreamableHTTPClientTransport(url, { requestInit: { headers: bearer } });
const client = new Client(
  { name: 'patience', version: '1.0.0' },
  { versionNegotiation: { mode: 'auto' } },
);
await client.connect(transport);

// Nobody runs anything here, so that it stays in the queue.
const made = await client.callTool({
  name: 'create_claude_session',
  arguments: {
    sessionType: 'analysis',
    repository: 'owner/repo',
    requirements: 'See how it is built',
    autoStart: true,
  },
});
const { sessionId } = made.structuredContent;
const wait = (timeoutSeconds, options) =>
  client.callTool(
    { name: 'wait_for_session', arguments: { sessionIds: [sessionId], timeoutSeconds } },
    options,
  );

const began = Date.now();
const { structuredContent: waited } = await wait(1);
assert.ok(Date.now() - began >= 1000, 'it waits for as long as it was asked to');
assert.equal(waited.done, false);
assert.deepEqual(waited.pending.map((session) => session.sessionId), [sessionId]);
assert.match(waited.next, /wait_for_session/);

// It is over as soon as it is no longer wanted, and the session is as it was.
const enough = new AbortController();
await assert.rejects(wait(30, { signal: enough.signal, onprogress: () => enough.abort() }));
const status = await client.callTool({ name: 'get_session_status', arguments: { sessionId } });
assert.equal(status.structuredContent.status, 'queued');
await client.close();
