// The second TypeScript SDK, which speaks revision 2026-07-28.
//
//   node typescript-v2.mjs http|stdio     with MCP_URL, MCP_TOKEN, BATON in the environment
import { Client, StreamableHTTPClientTransport } from '@modelcontextprotocol/client';
import { StdioClientTransport } from '@modelcontextprotocol/client/stdio';
import { conduct } from './orchestra.mjs';
import { bridge, bearer, url } from './reach.mjs';

const transport =
  process.argv[2] === 'stdio'
    ? new StdioClientTransport({ ...bridge, stderr: 'inherit' })
    : new StreamableHTTPClientTransport(url, { requestInit: { headers: bearer } });
const client = new Client(
  { name: 'typescript-v2', version: '1.0.0' },
  { versionNegotiation: { mode: 'auto' } },
);
await client.connect(transport);

const watchers = new Map();
client.setNotificationHandler('notifications/resources/updated', ({ params }) => {
  watchers.get(params.uri)?.();
});

await conduct(
  {
    version: client.getNegotiatedProtocolVersion(),
    instructions: client.getInstructions() ?? '',
    tools: async () => (await client.listTools()).tools,
    templates: async () => (await client.listResourceTemplates()).resourceTemplates,
    call: (name, input, onprogress) => client.callTool({ name, arguments: input }, { onprogress }),
    read: async (uri) => (await client.readResource({ uri })).contents,
    prompt: async (name, input) => (await client.getPrompt({ name, arguments: input })).messages,
    complete: async (uri, name, value) =>
      (await client.complete({ ref: { type: 'ref/resource', uri }, argument: { name, value } }))
        .completion.values,
    watch: async (uri, updated) => {
      watchers.set(uri, updated);
      const subscription = await client.listen({ resourceSubscriptions: [uri] });
      return () => subscription.close();
    },
  },
  '2026-07-28',
);
await client.close();
