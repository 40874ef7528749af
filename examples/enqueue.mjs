// Enqueues a job of Offload from Node.js, with the ordinary client: npm install redis
//
//     OFFLOAD_URL=redis://localhost:6379/0 node enqueue.mjs
//     OFFLOAD_URL='redis://localhost:6379/0?prefix=shop' node enqueue.mjs
//
// `enqueue.lua` comes with Offload; copy it beside this file first, as the guide says.

import { randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createClient } from "redis";

const script = await readFile(new URL("enqueue.lua", import.meta.url), "utf8");
const address = new URL(process.env.OFFLOAD_URL); // the same as the workers'
const prefix = address.searchParams.get("prefix") ?? "offload";
address.search = ""; // the rest of Offload's options are for its own client
const client = await createClient({ url: address.href }).connect();
const sha = await client.scriptLoad(script);

async function enqueue(task, payload, { id = randomUUID(), ...options } = {}) {
  const call = { keys: [`{${prefix}}:`], arguments: [id, task, JSON.stringify(payload), ...Object.entries(options).flat().map(String)] };
  try {
    await client.evalSha(sha, call);
  } catch (error) {
    if (!error.message.startsWith("NOSCRIPT")) throw error; // the server was restarted and has forgotten the script
    await client.eval(script, call);
  }
  return id;
}

console.log(await enqueue("shop.welcome", { user_id: 7, name: "Zoë" }, { id: "welcome-7" }));
console.log(await enqueue("shop.welcome", { user_id: 7, name: "Zoë" }, { id: "welcome-7" })); // the same id: not stored twice
console.log(await enqueue("shop.welcome", { user_id: 8, name: "Ada" }, { id: "welcome-8", priority: 50, queue: "vip" }));
console.log(await enqueue("shop.remind", { user_id: 7 }, { id: "remind-7", delay: 3600 }));

await client.close();
