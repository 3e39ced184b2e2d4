/** Scripted members in a process of their own: `<keys file> <router's control address> <count> <report interval, ms>`. */
import { loadKeys } from "../../services/shared/edge/keys.ts";
import { ScriptedMembers } from "./scripted-members.ts";

const [keysFile = "", target = "", count = "", interval = ""] = process.argv.slice(2);
const members = await ScriptedMembers.join({
  count: Number(count),
  target,
  keys: loadKeys(keysFile),
  loadIntervalMs: Number(interval),
});
process.send?.({ kind: "joined", count: members.ids.length });
process.on("disconnect", () => process.exit(0));
