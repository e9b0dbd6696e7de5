# SPDX-License-Identifier: Apache-2.0
"""A process that holds candidates of one Python environment and runs them when it is told to: one command a line on
standard input, one answer a line on standard output, both JSON. Only the process that was told computes, so candidates
of several environments can take turns on the same cores."""
import importlib
import json
import os
import sys
import time
import traceback


def answer(channel, command, module, jobs):
    if command["do"] == "names":
        return {"names": module.names(command["op"])}
    if command["do"] == "versions":
        return {"versions": module.versions()}
    if command["do"] == "prepare":
        job = module.prepare(command["name"], command["case"])
        job.run()
        jobs[command["key"]] = job
        job.save(command["results"])
        return {"ok": True}
    if command["do"] == "time":
        job = jobs[command["key"]]
        start = time.perf_counter()
        for _ in range(command["calls"]):
            job.run()
        return {"seconds": (time.perf_counter() - start) / command["calls"]}
    if command["do"] == "drop":
        jobs.clear()
        return {"ok": True}
    raise ValueError(f"unknown command {command['do']}")


def main():
    # Libraries print; what they print must not be taken for an answer.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module = importlib.import_module(sys.argv[1])
    jobs = {}
    for line in sys.stdin:
        try:
            reply = answer(channel, json.loads(line), module, jobs)
        except Exception as error:  # a candidate that fails is named in the results; the others go on
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        channel.write(json.dumps(reply) + "\n")
        channel.flush()


if __name__ == "__main__":
    main()
