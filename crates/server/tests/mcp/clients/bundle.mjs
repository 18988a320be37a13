// Installs an MCP bundle as a client does, fills in its form, starts what it says, and asks it for
// its tools.
//
//   node bundle.mjs BUNDLE     with MCP_URL, MCP_TOKEN, BATON in the environment
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { unpackExtension } from '@anthropic-ai/mcpb';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js';
import { TOOLS } from './orchestra.mjs';
import { bridge, url } from './reach.mjs';

const home = mkdtempSync(join(tmpdir(), 'mcpb-'));
try {
  const unpacked = await unpackExtension({ mcpbPath: process.argv[2], outputDir: home, silent: true });
  assert.ok(unpacked);
  const manifest = JSON.parse(readFileSync(join(home, 'manifest.json')));
  assert.equal(manifest.user_config.token.sensitive, true);

  const filled = { url: url.origin, token: bridge.env.CLAUDE_WEBHOOK_SECRET };
  assert.deepEqual(Object.keys(manifest.user_config).sort(), Object.keys(filled).sort());
  const fill = (text) =>
    text
      .replaceAll('${__dirname}', home)
      .replaceAll(/\$\{user_config\.(\w+)\}/g, (_, name) => filled[name]);
  const { command, args, env } = manifest.server.mcp_config;
  const client = new Client({ name: 'bundle', version: '1.0.0' });
  await client.connect(
    new StdioClientTransport({
      command: fill(command),
      args: args.map(fill),
      env: Object.fromEntries(Object.entries(env).map(([name, value]) => [name, fill(value)])),
      stderr: 'inherit',
    }),
  );
  const { tools } = await client.listTools();
  assert.deepEqual(tools.map(({ name }) => name).sort(), [...TOOLS].sort());
  await client.close();
} finally {
  rmSync(home, { recursive: true });
}
