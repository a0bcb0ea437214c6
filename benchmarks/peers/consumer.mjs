// The protocol of consumer.py for peers in JavaScript. Arguments: the database's URL, a file with a payload a line, and
// the folder node_modules.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const [, , url, payloads, modules] = process.argv;
const lines = readFileSync(payloads, "utf8").split("\n").filter(Boolean);
let next = 0;

export { url };
export const load = (name) => createRequire(modules + "/x.js")(name);
const some = (count) => Array.from({ length: Number(count) }, () => lines[next++ % lines.length]);
const now = () => process.hrtime.bigint();

// One by one, by so many at the same time.
async function byTurns(texts, clients, create) {
  const client = async (number) => {
    for (let at = number; at < texts.length; at += clients) await create(texts[at]);
  };
  await Promise.all(Array.from({ length: clients }, (_, number) => client(number)));
}

export async function serve({ create, fill, drain, listen, stop, close }) {
  console.log("ready");
  for await (const line of createInterface({ input: process.stdin })) {
    const [command, ...words] = line.split(" ");
    let answer = "ok";
    if (command === "create") await byTurns(some(words[0]), Number(words[1]), create);
    else if (command === "fill") await fill(some(words[0]));
    else if (command === "drain") answer = await drain(Number(words[0]));
    else if (command === "listen") await listen(() => console.log(`started ${now()}`));
    else if (command === "stop") await stop();
    else if (command === "stamp") {
      answer = now();
      await create(some(1)[0]);
    } else throw new Error(line);
    console.log(`${answer}`);
  }
  await close();
}

export function* pieces(all, size) {
  for (let at = 0; at < all.length; at += size) yield all.slice(at, at + size);
}
