// What a client of Baton does, told to any library: a graph of sessions from nothing to its
// output, resources, the prompt, completion, and what goes wrong.
import assert from 'node:assert/strict';

export const TOOLS = [
  'create_claude_session',
  'start_claude_session',
  'get_session_status',
  'get_session_output',
  'list_sessions',
  'wait_for_session',
  'cancel_session',
  'retry_session',
  'message_session',
  'orchestrate',
  'get_orchestration',
];
// Room in a caller's context is what is scarce.
const DEFINITIONS_BYTES_MAX = 6000;
const INSTRUCTIONS_CHARACTERS_MAX = 4000;
const REPOSITORY = 'owner/repo';

// `mcp` is a library that speaks to a server already:
//   version, instructions           what was agreed on, and what the server said of itself
//   tools() templates()             lists
//   call(name, arguments, progress) a tool's result
//   read(uri) prompt(name, arguments) complete(uriTemplate, argument, begun)
//   watch(uri, updated)             calls `updated` at each change until what it gives is called
export async function conduct(mcp, version) {
  assert.equal(mcp.version, version);
  assert.ok(mcp.instructions.length > 100 && mcp.instructions.length < INSTRUCTIONS_CHARACTERS_MAX);
  await definitionsAreThereAndSmall(mcp);
  const ids = await graphIsMade(mcp);
  await waitSaysWhoWaitsForSomebody(mcp, ids);
  await graphRunsAndIsWatched(mcp, ids);
  await outputIsRead(mcp, ids);
  await resourcesAreRead(mcp, ids);
  await idsAreCompleted(mcp, ids);
  await promptIsThere(mcp);
  await errorsSayWhatToDo(mcp);
  await namesOfOthersAreKnown(mcp);
}

async function definitionsAreThereAndSmall(mcp) {
  const tools = await mcp.tools();
  assert.deepEqual(tools.map(({ name }) => name).sort(), [...TOOLS].sort());
  const bytes = Buffer.byteLength(JSON.stringify(tools));
  assert.ok(bytes < DEFINITIONS_BYTES_MAX, `the definitions have ${bytes} bytes`);
}

async function graphIsMade(mcp) {
  const create = async (sessionType, requirements, dependencies) => {
    const made = await done(mcp, 'create_claude_session', {
      sessionType,
      repository: REPOSITORY,
      requirements,
      ...(dependencies ? { dependencies } : {}),
    });
    assert.match(made.sessionId, /^[0-9a-f-]{36}$/);
    return made.sessionId;
  };
  const analysis = await create('analysis', 'See how it is built');
  const storage = await create('implementation', 'Build the storage', [analysis]);
  const format = await create('implementation', 'Build the formatter', [analysis]);
  const tests = await create('testing', 'Test both together', [storage, format]);
  return { analysis, storage, format, tests };
}

// Nobody has started anything, and so it would not help to wait.
async function waitSaysWhoWaitsForSomebody(mcp, { analysis, tests }) {
  const waited = await done(mcp, 'wait_for_session', {
    sessionIds: [analysis, tests],
    mode: 'all',
    timeoutSeconds: 30,
  });
  assert.equal(waited.done, false);
  assert.match(waited.attention.join(), /start_claude_session/);
  assert.deepEqual(idsOf(waited.pending), [analysis, tests].sort());
  const status = await done(mcp, 'get_session_status', { sessionId: tests });
  assert.equal(status.sessionId, tests);
  assert.equal(status.status, 'initializing');
}

async function graphRunsAndIsWatched(mcp, ids) {
  let seen;
  const changed = new Promise((resolve) => (seen = resolve));
  const stop = await mcp.watch(`baton://sessions/${ids.tests}`, seen);
  for (const sessionId of [ids.tests, ids.format, ids.storage, ids.analysis]) {
    await done(mcp, 'start_claude_session', { sessionId });
  }
  let progress = 0;
  const everything = Object.values(ids);
  const waited = await done(
    mcp,
    'wait_for_session',
    { sessionIds: everything, mode: 'all', timeoutSeconds: 40 },
    () => (progress += 1),
  );
  assert.equal(waited.done, true, JSON.stringify(waited));
  assert.deepEqual(idsOf(waited.finished), [...everything].sort());
  assert.ok(progress > 0, 'a wait says at once how it goes');
  await changed;
  await stop();
  const any = await done(mcp, 'wait_for_session', { sessionIds: everything, mode: 'any' });
  assert.equal(any.done, true, 'some have finished already');
}

async function outputIsRead(mcp, { tests }) {
  const output = await done(mcp, 'get_session_output', { sessionId: tests });
  assert.equal(output.status, 'completed');
  assert.match(output.summary, /testing/);
  const detailed = await done(mcp, 'get_session_output', { sessionId: tests, detail: 'detailed' });
  assert.ok(detailed.logs.length > 0);
  const list = await done(mcp, 'list_sessions', { status: 'completed' });
  assert.ok(list.sessions.some(({ sessionId }) => sessionId === tests));
}

async function resourcesAreRead(mcp, { tests }) {
  const templates = await mcp.templates();
  assert.deepEqual(templates.map(({ uriTemplate }) => uriTemplate).sort(), [
    'baton://orchestrations/{id}',
    'baton://sessions/{id}',
    'baton://sessions/{id}/log',
  ]);
  const session = await mcp.read(`baton://sessions/${tests}`);
  assert.match(session[0].text, new RegExp(tests));
  const log = await mcp.read(`baton://sessions/${tests}/log`);
  assert.ok(log[0].text.length > 0);
  const nowhere = 'baton://sessions/00000000-0000-7000-8000-ffffffffffff';
  await assert.rejects(mcp.read(nowhere));
}

async function idsAreCompleted(mcp, { tests }) {
  const values = await mcp.complete('baton://sessions/{id}', 'id', tests.slice(0, -1));
  assert.ok(values.includes(tests), `${tests} is not among ${values}`);
  const none = await mcp.complete('baton://sessions/{id}', 'id', 'nothing begins like this');
  assert.deepEqual(none, []);
}

async function promptIsThere(mcp) {
  const messages = await mcp.prompt('orchestrate', { goal: 'Add a login', repository: REPOSITORY });
  const text = messages.map(({ content }) => content.text).join('\n');
  assert.match(text, /Add a login/);
  assert.match(text, /owner\/repo/);
}

async function errorsSayWhatToDo(mcp) {
  const unknown = await failed(mcp, 'get_session_status', {
    sessionId: '00000000-0000-7000-8000-ffffffffffff',
  });
  assert.match(unknown, /00000000-0000-7000-8000-ffffffffffff/);
  const type = await failed(mcp, 'create_claude_session', {
    sessionType: 'documentation',
    repository: REPOSITORY,
    requirements: 'Write it down',
  });
  for (const valid of ['analysis', 'implementation', 'testing', 'review', 'coordination']) {
    assert.match(type, new RegExp(valid));
  }
  const missing = await failed(mcp, 'start_claude_session', {});
  assert.match(missing, /sessionId/);
  await assert.rejects(mcp.call('no_such_tool', {}), /create_claude_session/);
}

// As clients of other servers call the same things.
async function namesOfOthersAreKnown(mcp) {
  const made = await done(mcp, 'create_session', {
    session_type: 'analysis',
    repository: REPOSITORY,
    requirements: 'The same, named otherwise',
  });
  const cancelled = await done(mcp, 'cancel_session', { session_id: made.sessionId });
  assert.equal(cancelled.status, 'cancelled');
}

// A result that is no error; what it says in fields.
async function done(mcp, name, input, progress) {
  const result = await mcp.call(name, input, progress);
  assert.ok(!result.isError, `${name} failed: ${JSON.stringify(result.content)}`);
  assert.ok(result.structuredContent, `${name} answers in fields`);
  return result.structuredContent;
}

// A result that is an error; its text.
async function failed(mcp, name, input) {
  const result = await mcp.call(name, input);
  assert.equal(result.isError, true, `${name} went through: ${JSON.stringify(result)}`);
  return result.content.map(({ text }) => text).join('\n');
}

function idsOf(sessions) {
  return sessions.map((session) => session.sessionId ?? session).sort();
}
