// One set-up at a time in one working tree: a lock file whose holder renews it while it works.
import {
  closeSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  utimesSync,
  writeSync,
} from "node:fs";
import { hostname } from "node:os";
import { dirname } from "node:path";

/** How often the holder renews its lock. */
const renewMs = 2_000;
/** A lock that was not renewed for this long belongs to nobody: its holder was killed, or sat on another machine. */
const staleAfterMs = 20_000;
/** How often a waiting set-up looks again. */
const pollMs = 200;

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Whether the lock's holder is surely gone: not renewed for long, or a dead process of this machine. */
function isStale(path) {
  let age, owner;
  try {
    age = Date.now() - statSync(path).mtimeMs;
    owner = JSON.parse(readFileSync(path, "utf8"));
  } catch (error) {
    if (error.code === "ENOENT") return false; // released between the two calls: just try again
    return age !== undefined && age > staleAfterMs; // half-written: give its writer time
  }
  if (age > staleAfterMs) return true;
  if (owner.host !== hostname()) return false;
  try {
    process.kill(owner.pid, 0);
    return false;
  } catch (error) {
    return error.code === "ESRCH";
  }
}

/** Takes the lock if it is free. */
function tryTake(path) {
  let file;
  try {
    file = openSync(path, "wx");
  } catch (error) {
    if (error.code === "EEXIST") return false;
    throw error;
  }
  writeSync(file, JSON.stringify({ pid: process.pid, host: hostname() }));
  closeSync(file);
  return true;
}

/**
 * Removes a lock that belongs to nobody. Looking and removing is one step among several waiters, guarded by a file of
 * its own: a waiter that looked before and removed later would take the lock of the one that was quicker.
 */
function removeIfStale(path) {
  const guard = `${path}.removal`;
  if (!tryTake(guard)) {
    if (isStale(guard)) rmSync(guard, { force: true }); // its holder was killed in these few microseconds
    return;
  }
  try {
    if (isStale(path)) rmSync(path, { force: true });
  } finally {
    rmSync(guard, { force: true });
  }
}

/**
 * Runs `work` while holding the lock at `path`. Waits for another holder up to `waitMsMax`, then throws. The lock goes
 * when the work ends, also by an exception or a signal that Node turns into an exit.
 *
 * @template T
 * @param {{ path: string, waitMsMax: number, onWait: (holder: string) => void }} options `onWait` is called once
 * @param {() => Promise<T>} work
 * @returns {Promise<T>}
 */
export async function withLock({ path, waitMsMax, onWait }, work) {
  mkdirSync(dirname(path), { recursive: true });
  const giveUpAt = Date.now() + waitMsMax;
  let told = false;
  while (!tryTake(path)) {
    if (isStale(path)) {
      removeIfStale(path);
      continue;
    }
    if (Date.now() > giveUpAt) {
      throw new Error(`another set-up has held ${path} for ${waitMsMax / 1000} s; end it first`);
    }
    if (!told) {
      told = true;
      let holder = "unknown";
      try {
        holder = String(JSON.parse(readFileSync(path, "utf8")).pid);
      } catch {
        // The lock was just released or is being written; the number is only for the message.
      }
      onWait(holder);
    }
    await sleep(pollMs);
  }
  const release = () => rmSync(path, { force: true });
  const renewal = setInterval(() => {
    const now = new Date();
    try {
      utimesSync(path, now, now);
    } catch {
      // Somebody removed the folder; the work in hand fails by itself if that matters.
    }
  }, renewMs);
  const onSignal = (signal) => {
    release();
    process.exit(signal === "SIGINT" ? 130 : 143);
  };
  process.once("SIGINT", onSignal);
  process.once("SIGTERM", onSignal);
  try {
    return await work();
  } finally {
    clearInterval(renewal);
    process.removeListener("SIGINT", onSignal);
    process.removeListener("SIGTERM", onSignal);
    release();
  }
}
