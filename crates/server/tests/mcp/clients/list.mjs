// A list of many sessions leaves room in a caller's context.
//
//   node list.mjs     with MCP_URL, MCP_TOKEN, BATON in the environment
import assert from 'node:assert/strict';
import { Client, StreamableHTTPClientTransport } from '@modelcontextprotocol/client';
import { bearer, url } from './reach.mjs';

const LIST_BYTES_MAX = 8 * 1024;
const SESSIONS = 1000;

const client = new Client(
  { name: 'list', version: '1.0.0' },
  { versionNegotiation: { mode: 'auto' } },
);
await client.connect(new StreamableHTTPClientTransport(url, { requestInit: { headers: bearer } }));
const list = await client.callTool({ name: 'list_sessions', arguments: {} });
const bytes = Buffer.byteLength(JSON.stringify(list));
assert.ok(bytes < LIST_BYTES_MAX, `the list has ${bytes} bytes`);
const { sessions, nextCursor } = list.structuredContent;
assert.equal(sessions.length, 20);

// All of them are reached, each once, a page at a time.
const ids = new Set(sessions.map(({ sessionId }) => sessionId));
let cursor = nextCursor;
while (cursor) {
  const page = await client.callTool({
    name: 'list_sessions',
    arguments: { cursor, limit: 200 },
  });
  page.structuredContent.sessions.forEach(({ sessionId }) => ids.add(sessionId));
  cursor = page.structuredContent.nextCursor;
}
assert.equal(ids.size, SESSIONS);
await client.close();
