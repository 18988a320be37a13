// Runs the official conformance suites against a server and judges it.
//
//   node conformance.mjs product|fixture URL [SUITE...]     with MCP_TOKEN in the environment
//
// `scenarios.json` says for each scenario what is expected of a product and of the fixture. Fails
// when a scenario failed that should pass, did not run, or is not in that list.
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { startProxy } from './proxy.mjs';

// All scenarios of one suite together; what is stuck that long will not come.
const SUITE_LIMIT_MS = 240_000;

const here = dirname(fileURLToPath(import.meta.url));
const { suites, scenarios } = JSON.parse(readFileSync(join(here, 'scenarios.json')));

const [kind, url, ...chosen] = process.argv.slice(2);
const token = process.env.MCP_TOKEN;
const known = Object.keys(suites);
if (!['product', 'fixture'].includes(kind) || !url || !token || chosen.some((suite) => !known.includes(suite))) {
  console.error(`usage: MCP_TOKEN=... conformance.mjs product|fixture URL [${known.join('|')}]...`);
  process.exit(2);
}

const proxy = await startProxy(url, token);
const results = mkdtempSync(join(tmpdir(), 'mcp-conformance-'));
const worth = known.filter((suite) =>
  scenarios.some((scenario) => scenario.suites.includes(suite) && mustPass(scenario)),
);
const verdicts = await Promise.all((chosen.length ? chosen : worth).map(judgeSuite));
proxy.close();

for (const { suite, lines, problems, passed, expected } of verdicts) {
  for (const line of lines) console.log(line);
  console.log(`${suite}: ${passed} of ${expected} expected scenarios passed, ${problems.length} problems`);
  for (const problem of problems) console.log(`${suite}: PROBLEM: ${problem}`);
}
const failed = verdicts.some(({ problems }) => problems.length > 0);
if (failed) console.log(`what the suites wrote down: ${results}`);
else rmSync(results, { recursive: true });
process.exitCode = failed ? 1 : 0;

// Runs one suite; gives what it found and what is wrong with that.
async function judgeSuite(suite) {
  const out = join(results, suite);
  const runs = await Promise.all(suites[suite].runs.map((run) => runSuite(suite, run, out)));
  const ran = readResults(out);
  const verdict = { suite, lines: [], problems: [], passed: 0, expected: 0 };
  const here = scenarios.filter((scenario) => scenario.suites.includes(suite));
  for (const scenario of here) {
    const checks = ran.get(scenario.name);
    ran.delete(scenario.name);
    judge(scenario, checks, verdict);
  }
  for (const name of ran.keys()) verdict.problems.push(`${name} is not in scenarios.json`);
  if (verdict.passed === 0) {
    const ends = runs.map(({ code, text }) => `${code}: ${text.slice(-600)}`);
    verdict.problems.push(`no scenario passed; the suite ended with ${ends.join('; ')}`);
  }
  return verdict;
}

// Whether a scenario is one of those that this kind of server has to pass.
function mustPass({ [kind]: expectation }) {
  return expectation === 'passes' || expectation === 'passes but for diagnostic tools';
}

// Adds to `verdict` what `checks` say of a scenario.
function judge(scenario, checks, verdict) {
  const { name, [kind]: expectation } = scenario;
  const line = (mark, more) => verdict.lines.push(`${verdict.suite}\t${mark}\t${name}\t${more ?? ''}`);
  if (mustPass(scenario)) verdict.expected += 1;
  if (!checks) {
    line('missing');
    verdict.problems.push(`${name} did not run`);
    return;
  }
  const failures = checks.filter(({ status }) => status === 'FAILURE');
  // The suites say so where a check needs a tool that only a fixture has.
  const counted = expectation === 'passes but for diagnostic tools'
    ? failures.filter(({ errorMessage }) => !/diagnostic tool 'test_/.test(errorMessage ?? ''))
    : failures;
  const succeeded = checks.some(({ status }) => status === 'SUCCESS');
  const count = `${checks.filter(({ status }) => status === 'SUCCESS').length} checks`;
  if (!mustPass(scenario)) {
    line(failures.length ? 'not expected to pass' : 'passed all the same', expectation);
    return;
  }
  if (counted.length === 0 && succeeded) {
    verdict.passed += 1;
    const besides = failures.length ? `, ${failures.length} not testable` : '';
    line('passed', count + besides);
    return;
  }
  line('FAILED', count);
  const reasons = counted.map(({ id, errorMessage }) => `${id}: ${errorMessage ?? ''}`);
  verdict.problems.push(`${name} failed: ${reasons.join('; ') || 'no check succeeded'}`);
}

// The checks of each scenario that ran, by name.
function readResults(out) {
  const ran = new Map();
  let directories = [];
  try {
    directories = readdirSync(out);
  } catch {
    // The suite wrote nothing: every scenario is missing.
  }
  for (const directory of directories) {
    const name = directory.match(/^server-(.+)-20\d\d-\d\d-\d\dT/)?.[1];
    const checks = join(out, directory, 'checks.json');
    // A suite that breaks off leaves a directory with nothing in it.
    if (name && existsSync(checks)) ran.set(name, JSON.parse(readFileSync(checks)));
  }
  return ran;
}

// Runs a suite with `more` arguments to its end or the limit; gives its exit code and what it
// printed.
function runSuite(suite, more, out) {
  const program = join(here, '..', 'node_modules', suites[suite].module, 'dist', 'index.js');
  const child = spawn(process.execPath, [program, 'server', '--url', proxy.url, ...more, '-o', out], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const limit = setTimeout(() => child.kill('SIGKILL'), SUITE_LIMIT_MS);
  let text = '';
  child.stdout.on('data', (data) => (text += data));
  child.stderr.on('data', (data) => (text += data));
  return new Promise((ended) => {
    child.on('close', (code, signal) => {
      clearTimeout(limit);
      ended({ code: code ?? signal, text });
    });
  });
}
