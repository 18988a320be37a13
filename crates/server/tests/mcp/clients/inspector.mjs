// MCP Inspector on the command line, which is a client of its own: one process for each request.
//
//   node inspector.mjs http|stdio     with MCP_URL, MCP_TOKEN, BATON in the environment
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { TOOLS } from './orchestra.mjs';
import { bridge, url, bearer } from './reach.mjs';

const program = join(dirname(fileURLToPath(import.meta.url)), '../node_modules/.bin/mcp-inspector');
const reach =
  process.argv[2] === 'stdio'
    ? [...Object.entries(bridge.env).flatMap(([name, value]) => ['-e', `${name}=${value}`]),
       bridge.command, ...bridge.args]
    : [url.href, '--transport', 'http', '--header', `Authorization: ${bearer.Authorization}`];

// Both eras, since each process may speak another; side by side, since each takes seconds to begin.
await Promise.all(['legacy', 'modern'].map(conduct));

async function conduct(era) {
  const { tools } = await inspect(era, 'tools/list');
  assert.deepEqual(tools.map(({ name }) => name).sort(), [...TOOLS].sort());

  const made = await inspect(era, 'tools/call', '--tool-name', 'create_claude_session',
    '--tool-args-json', JSON.stringify({
      sessionType: 'analysis', repository: 'owner/repo', requirements: 'See how it is built',
    }));
  const { sessionId } = made.structuredContent;
  assert.match(sessionId, /^[0-9a-f-]{36}$/);
  await inspect(era, 'tools/call', '--tool-name', 'start_claude_session',
    '--tool-args-json', JSON.stringify({ sessionId }));
  const waited = await inspect(era, 'tools/call', '--tool-name', 'wait_for_session',
    '--tool-args-json', JSON.stringify({ sessionId, timeoutSeconds: 30 }));
  assert.equal(waited.structuredContent.done, true);
  const { contents } = await inspect(era, 'resources/read', '--uri', `baton://sessions/${sessionId}`);
  assert.match(contents[0].text, new RegExp(sessionId));
  const { messages } = await inspect(era, 'prompts/get', '--prompt-name', 'orchestrate',
    '--prompt-args', 'goal=Add a login', 'repository=owner/repo');
  assert.match(messages[0].content.text, /Add a login/);
}

// Runs it once; gives what it prints.
async function inspect(era, method, ...more) {
  const parts = [program, '--cli', ...reach, '--protocol-era', era, '--format', 'json',
    '--method', method, ...more];
  const { error, stdout, stderr } = await new Promise((ended) => {
    execFile(process.execPath, parts, (error, stdout, stderr) => ended({ error, stdout, stderr }));
  });
  assert.ok(!error, `${method} ended with ${error?.code}: ${stderr}${stdout}`);
  return JSON.parse(stdout).result;
}
