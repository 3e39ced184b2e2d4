/** Members with full caches in a process of their own: `<keys file> <count> <blocks of all>`; dial what they are told to. */
import { loadKeys } from "../../services/shared/edge/keys.ts";
import { ScriptedMembers } from "./scripted-members.ts";

const [keysFile = "", count = "", blocks = ""] = process.argv.slice(2);
const keys = loadKeys(keysFile);
const each = Math.ceil(Number(blocks) / Number(count));
/** Distinct in all of them, as conversations are. */
const cached = Array.from({ length: Number(count) }, (_, member) => {
  const hashes = new Uint32Array(2 * each);
  for (let i = 0; i < each; i++) {
    const n = member * each + i + 1;
    hashes[2 * i] = Math.imul(n, 0x9e3779b1);
    hashes[2 * i + 1] = Math.imul(n ^ (n >>> 15), 0x85ebca6b) ^ n;
  }
  return hashes;
});

let members: ScriptedMembers | undefined;
process.on("message", ({ target }: { readonly target: string }) => {
  members?.close();
  void ScriptedMembers.join({ count: Number(count), target, keys, cached }).then((joined) => {
    members = joined;
    process.send?.({ kind: "joined" });
  });
});
process.on("disconnect", () => process.exit(0));
process.send?.({ kind: "prepared", blocks: each * Number(count) });
