// Where the server of a test is: over HTTP, and over stdio through `baton mcp`.
const { MCP_URL, MCP_TOKEN, BATON, PATH, HOME } = process.env;

export const url = new URL(MCP_URL);
export const bearer = { Authorization: `Bearer ${MCP_TOKEN}` };
export const bridge = {
  command: BATON,
  args: ['mcp', '--connect', url.origin],
  env: { CLAUDE_WEBHOOK_SECRET: MCP_TOKEN, PATH, HOME },
};
