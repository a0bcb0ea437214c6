// Graphile Worker: its worker with a local queue of 100 and batched completion, until nothing is left.
// Arguments: the database's URL, a file with a payload a line, and the folder node_modules.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const [url, payloads, modules] = process.argv.slice(2);
const { Logger, makeWorkerUtils, runOnce } = createRequire(modules + "/x.js")("graphile-worker");
const lines = readFileSync(payloads, "utf8").split("\n").filter(Boolean);
const logger = new Logger(() => () => {});
let done = 0;
let next = 0;

const utils = await makeWorkerUtils({ connectionString: url, logger });
await utils.migrate();
const preset = {
  worker: {
    connectionString: url,
    concurrentJobs: 24,
    maxPoolSize: 26,
    localQueue: { size: 100 },
    completeJobBatchDelay: 0,
  },
};
const taskList = { work: async () => void done++ };

console.log("ready");
for await (const line of createInterface({ input: process.stdin })) {
  const [command, number] = line.split(" ");
  if (command === "fill") {
    for (let left = Number(number); left > 0; left -= 1000) {
      await utils.addJobs(
        Array.from({ length: Math.min(1000, left) }, () => ({
          identifier: "work",
          payload: { text: lines[next++ % lines.length] },
        })),
      );
    }
    console.log("ok");
  } else {
    const before = done;
    await runOnce({ preset, taskList, logger });
    console.log(done - before);
  }
}
await utils.release();
