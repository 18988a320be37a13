#!/usr/bin/env python3
"""Stands in for Claude Code where a test needs one that misbehaves.

The prompt's first line is `fake: [[step, argument, ...], ...]`; the steps are taken in order. There
is no result message unless a step gives one. What it prints depends on the steps alone, and on
what it is told.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
import uuid

OUT = sys.stdout.buffer


def put(line: bytes) -> None:
    OUT.write(line + b"\n")
    OUT.flush()


def say(message: dict) -> None:
    put(json.dumps(message, separators=(",", ":")).encode())


def git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], check=True, stdout=subprocess.DEVNULL)


def count_start() -> None:
    """Leaves traces that no second start can hide: one in the model's journal, one in the code."""
    prompt = f"fake start {uuid.uuid4()}"
    request = {
        "model": "fake",
        "max_tokens": 1,
        "tools": [{"name": "None"}],
        "messages": [{"role": "user", "content": prompt}],
    }
    for _ in range(200):
        try:
            call = urllib.request.Request(
                os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages",
                data=json.dumps(request).encode(),
                headers={"content-type": "application/json"},
            )
            urllib.request.urlopen(call, timeout=20).read()
            break
        except OSError:
            time.sleep(0.1)
    with open("starts.txt", "a", encoding="utf-8") as starts:
        starts.write("started\n")
    git("add", "starts.txt")
    git("commit", "--quiet", "--message", "Start")


def numbered(count: int, delay_ms: int, first: int = 0) -> None:
    for number in range(first, first + count):
        put(b"line %06d " % number + b"%064d" % (number * number))
        time.sleep(delay_ms / 1000)


def print_mib(mib: int) -> None:
    block = (b"x" * 1023 + b"\n") * 1024
    for _ in range(mib):
        OUT.write(block)
    OUT.flush()


def line_mib(mib: int) -> None:
    for _ in range(mib):
        OUT.write(b"y" * (1 << 20))
    put(b"")


def result(text: str, is_error: bool = False) -> None:
    say(
        {
            "type": "result",
            "subtype": "success",
            "is_error": is_error,
            "num_turns": 1,
            "result": text,
            "total_cost_usd": 0.0125,
            "usage": {"input_tokens": 100, "output_tokens": 20},
        }
    )


def write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def commit(message: str) -> None:
    git("add", "--all")
    git("commit", "--quiet", "--message", message)


def allocate() -> None:
    kept = []
    while True:
        kept.append(bytearray(os.urandom(1 << 20)))


def allocate_in_child() -> None:
    child = os.fork()
    if child == 0:
        # The kernel shall choose this one.
        write("/proc/self/oom_score_adj", "1000")
        allocate()
    _, status = os.waitpid(child, 0)
    put(b"the child ended with signal %d" % os.WTERMSIG(status))


def tell_term() -> None:
    def told(_signal, _frame):
        put(b"told to stop")
        sys.exit(143)

    signal.signal(signal.SIGTERM, told)


def told() -> bytes:
    """The next message on stdin; empty at its end."""
    line = sys.stdin.buffer.readline()
    return json.loads(line)["message"]["content"].encode() if line else b""


def listen(times: int) -> None:
    for _ in range(times):
        put(b"told " + told())


def keep_conversation() -> None:
    """Leaves a conversation that can be gone on with."""
    name = sys.argv[sys.argv.index("--session-id") + 1]
    directory = os.environ["CLAUDE_CONFIG_DIR"] + "/projects/-workspace"
    os.makedirs(directory)
    write(f"{directory}/{name}.jsonl", "{}\n")


def main() -> None:
    prompt = told()
    head = prompt.split(b"\n", 1)[0]
    steps = json.loads(head.split(b"fake: ", 1)[1])
    say({"type": "system", "subtype": "init", "model": "fake", "claude_code_version": "0"})
    actions = {
        "count_start": count_start,
        "numbered": numbered,
        "print_mib": print_mib,
        "line_mib": line_mib,
        "raw": lambda digits: put(bytes.fromhex(digits)),
        "result": result,
        "listen": listen,
        "keep_conversation": keep_conversation,
        "tell_prompt_size": lambda: result(f"the prompt has {len(prompt)} bytes"),
        "write": write,
        "commit": commit,
        "allocate": allocate,
        "allocate_in_child": allocate_in_child,
        "tell_term": tell_term,
        "ignore_term": lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
        "hang": lambda: time.sleep(3600),
        "exit": sys.exit,
    }
    for name, *arguments in steps:
        actions[name](*arguments)


main()
