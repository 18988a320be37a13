// The first TypeScript SDK, which speaks revision 2025-11-25.
//
//   node typescript-v1.mjs http|stdio     with MCP_URL, MCP_TOKEN, BATON in the environment
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { ResourceUpdatedNotificationSchema } from '@modelcontextprotocol/sdk/types.js';
import { conduct } from './orchestra.mjs';
import { bridge, bearer, url } from './reach.mjs';

const transport =
  process.argv[2] === 'stdio'
    ? new StdioClientTransport({ ...bridge, stderr: 'inherit' })
    : new StreamableHTTPClientTransport(url, { requestInit: { headers: bearer } });
const client = new Client({ name: 'typescript-v1', version: '1.0.0' });
await client.connect(transport);

const watchers = new Map();
client.setNotificationHandler(ResourceUpdatedNotificationSchema, ({ params }) => {
  watchers.get(params.uri)?.();
});

await conduct(
  {
    // The transport is told the version as soon as it is agreed on; stdio has no use for it.
    version: transport.protocolVersion ?? '2025-11-25',
    instructions: client.getInstructions() ?? '',
    tools: async () => (await client.listTools()).tools,
    templates: async () => (await client.listResourceTemplates()).resourceTemplates,
    call: (name, input, onprogress) =>
      client.callTool({ name, arguments: input }, undefined, { onprogress }),
    read: async (uri) => (await client.readResource({ uri })).contents,
    prompt: async (name, input) => (await client.getPrompt({ name, arguments: input })).messages,
    complete: async (uri, name, value) =>
      (await client.complete({ ref: { type: 'ref/resource', uri }, argument: { name, value } }))
        .completion.values,
    watch: async (uri, updated) => {
      watchers.set(uri, updated);
      await client.subscribeResource({ uri });
      return () => client.unsubscribeResource({ uri });
    },
  },
  '2025-11-25',
);
// Over HTTP there is a session to take leave of.
await transport.terminateSession?.();
await client.close();
// Node would keep connections for seconds that nobody uses any more.
process.exit();
