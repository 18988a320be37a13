// Who is to be refused: pages of other origins, rebound names, clients without the token.
//
//   node strangers.mjs     with MCP_URL, MCP_TOKEN in the environment
import assert from 'node:assert/strict';
import http from 'node:http';
import { bearer, url } from './reach.mjs';

const opening = {
  jsonrpc: '2.0',
  id: 1,
  method: 'initialize',
  params: {
    protocolVersion: '2025-11-25',
    capabilities: {},
    clientInfo: { name: 'stranger', version: '1.0.0' },
  },
};

assert.equal(await send({}), 200);
assert.equal(await send({ Origin: url.origin }), 200);
assert.equal(await send({ Origin: 'http://evil.example' }), 403);
assert.equal(await send({ Origin: 'null' }), 403);
assert.equal(await send({ Host: 'evil.example' }), 403);
assert.equal(await send({ Host: `evil.example:${url.port}` }), 403);
assert.equal(await send({ Authorization: 'Bearer wrong' }), 401);
assert.equal(await send({ Authorization: '' }), 401);

// Opens a session with these headers besides those of a client that is let in; gives the status.
// Not with `fetch`, which does not let a Host be chosen.
function send(headers) {
  const request = http.request(url, {
    method: 'POST',
    headers: {
      ...bearer,
      'Content-Type': 'application/json',
      Accept: 'application/json, text/event-stream',
      ...headers,
    },
  });
  return new Promise((ended, failed) => {
    request.on('error', failed);
    request.on('response', (response) => {
      response.resume();
      ended(response.statusCode);
    });
    request.end(JSON.stringify(opening));
  });
}
