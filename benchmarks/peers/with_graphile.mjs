// Graphile Worker: its worker with a local queue of 100 and batched completion; without a local queue where a task is
// waited for, which is quicker to start.
import { load, pieces, serve, url } from "./consumer.mjs";

const { Logger, makeWorkerUtils, run, runOnce } = load("graphile-worker");
const { Pool } = load("pg");
const logger = new Logger(() => () => {});
const pgPool = new Pool({ connectionString: url, max: 26 });
let done = 0;
let enough = Infinity;
let runner = null;
let reached = () => {};

const utils = await makeWorkerUtils({ pgPool, logger });
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
const work = async () => {
  if (++done === enough) reached();
};

await serve({
  create: (text) => utils.addJob("work", { text }),
  async fill(texts) {
    for (const some of pieces(texts, 1000)) {
      await utils.addJobs(some.map((text) => ({ identifier: "work", payload: { text } })));
    }
  },
  async drain(count) {
    const before = done;
    const { rows } = await pgPool.query("SELECT count(*) > $1 AS more FROM graphile_worker._private_jobs", [count]);
    if (rows[0].more) {
      enough = before + count;
      const isReached = new Promise((resolve) => (reached = resolve));
      const worker = await run({ preset, taskList: { work }, logger, noHandleSignals: true });
      await isReached;
      enough = Infinity;
      await worker.stop();
    } else {
      await runOnce({ preset, taskList: { work }, logger });
    }
    return done - before;
  },
  async listen(started) {
    const options = { concurrency: 4, pgPool, logger, noHandleSignals: true };
    runner = await run({ ...options, taskList: { work: async () => started() } });
    await new Promise((resolve) => setTimeout(resolve, 1000));
  },
  stop: () => runner.stop(),
  async close() {
    await utils.release();
    await pgPool.end();
  },
});
