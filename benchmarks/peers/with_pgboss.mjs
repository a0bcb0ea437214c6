// pg-boss: fetch and complete in batches of 100; where a task is waited for, its worker, which looks every half second
// (the shortest that it allows).
import { load, pieces, serve, url } from "./consumer.mjs";

const PgBoss = load("pg-boss");
const BATCH = 100;
const boss = new PgBoss({ connectionString: url, max: 16 });
boss.on("error", () => {});
await boss.start();
await boss.createQueue("work");

await serve({
  create: (text) => boss.send("work", { text }),
  async fill(texts) {
    for (const some of pieces(texts, 1000)) {
      await boss.insert(some.map((text) => ({ name: "work", data: { text } })));
    }
  },
  async drain(count) {
    let left = count;
    while (left > 0) {
      const jobs = await boss.fetch("work", { batchSize: Math.min(BATCH, left) });
      if (jobs.length) await boss.complete("work", jobs.map((job) => job.id));
      left -= jobs.length;
    }
    return count;
  },
  listen: (started) => boss.work("work", { pollingIntervalSeconds: 0.5 }, async () => started()),
  stop: () => boss.offWork("work"),
  close: () => boss.stop({ graceful: false }),
});
