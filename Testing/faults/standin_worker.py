"""A stand-in for the engine's worker: it speaks the protocol, segments nothing, and fails on request.

Usage: standin_worker.py MODE. Standard library only, so that it starts in a moment. Requests:
`hello`, `segment` (three progress events, then done), `cancel`, `bye`. MODE says how it misbehaves:

good      not at all; a `segment` with "slow" waits to be cancelled and answers that
halves    as good, but every line is written in three pieces with pauses
dies      at a `segment`: two lines of log, exit status 3
killed    at a `segment`: ends itself by signal 9, as the system does when memory runs out
memory    at a `segment`: answers with an error of kind memory, and lives on
bad_alloc at a `segment`: logs a MemoryError and exits with status 1
hangs     at a `segment`: one progress event, then nothing
garbage   at a `segment`: a line of a library's chatter on standard output
flood     at a `segment`: bytes without a newline
deaf      at a `segment`: starts a child process of its own, answers no cancel and does not end with its input
nameless  at a `segment`: an error without an id, as if the line could not be read
newer     greets with protocol 99
incomplete  does not begin: a package is missing
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time


def answer(event, pieces=1):
    line = json.dumps(event, ensure_ascii=False) + "\n"
    size = len(line) // pieces + 1
    data = line.encode()
    for start in range(0, len(data), size):
        sys.stdout.buffer.write(data[start : start + size])
        sys.stdout.buffer.flush()
        if pieces > 1:
            time.sleep(0.05)


def log(text):
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def misbehave(mode, request):
    """Does what the mode says at a `segment`; returns True if nothing more is to be answered."""
    if mode == "dies":
        log("loading the model\nRuntimeError: the weights are not there")
        os._exit(3)
    if mode == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "bad_alloc":
        log("numpy._core._exceptions._ArrayMemoryError: Unable to allocate 3 GiB\nMemoryError")
        os._exit(1)
    if mode == "memory":
        answer({"id": request["id"], "event": "error", "kind": "memory", "message": "CUDA gave up", "hint": "crop"})
    elif mode == "nameless":
        answer({"event": "error", "kind": "internal", "message": "a line is not JSON", "hint": "repair"})
    elif mode == "garbage":
        sys.stdout.write("Loading checkpoint shards: 100%\n")
        sys.stdout.flush()
    elif mode == "flood":
        for _ in range(1000):  # 1 GB: should the engine not stop it, the disk is not filled
            sys.stdout.buffer.write(b"x" * 1_000_000)
            sys.stdout.buffer.flush()
    elif mode in ("hangs", "deaf"):
        answer({"id": request["id"], "event": "progress", "stage": "slices", "done": 0, "total": 9})
        if mode == "deaf":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            answer({"id": request["id"], "event": "partial", "done": 0, "child": child.pid})
            time.sleep(600)
    else:
        return False
    return True


def segment(mode, request, cancelled):
    if misbehave(mode, request):
        return
    pieces = 3 if mode == "halves" else 1
    for done in range(3):
        answer({"id": request["id"], "event": "progress", "stage": "Scheiben – 切片", "done": done, "total": 3}, pieces)
    if request.get("slow") and cancelled.wait(60):
        answer({"id": request["id"], "event": "error", "kind": "cancelled", "message": "cancelled", "hint": ""})
        return
    answer({"id": request["id"], "event": "done", "labels": "labels.npy", "pid": os.getpid()}, pieces)


def main(mode):
    cancelled = threading.Event()
    log(f"stand-in worker: {mode}")
    if mode == "incomplete":
        import a_package_that_is_not_there  # noqa: F401
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "hello":
            facts = {name: os.environ.get(name) for name in ("PYTHONHOME", "LD_LIBRARY_PATH", "QT_PLUGIN_PATH", "HOME")}
            protocol = 99 if mode == "newer" else 1
            answer({"id": request["id"], "event": "done", "protocol": protocol, "pid": os.getpid(), "facts": facts})
        elif request["do"] == "segment":
            cancelled.clear()
            threading.Thread(target=segment, args=(mode, request, cancelled), daemon=True).start()
        elif request["do"] == "cancel":
            cancelled.set()
        elif request["do"] == "bye":
            return
    if mode == "deaf":
        time.sleep(600)


if __name__ == "__main__":
    main(sys.argv[1])
