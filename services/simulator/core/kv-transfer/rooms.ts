import { monoMs, type MonoMs } from "../../../shared/core/ids.ts";

/** Poll states of SGLang's KV sender and receiver (`disaggregation/base/conn.py`, 0.5.15). */
export const pollStates = {
  failed: 0,
  bootstrapping: 1,
  waitingForInput: 2,
  transferring: 3,
  success: 4,
} as const;
export type PollState = keyof typeof pollStates;

/** What happens to a room on the prefill side. */
export type RoomEvent =
  /** The prefill leg and the decode engine's request are both here. */
  | "met"
  | "prefilled"
  | "sent"
  /** Either side left, or a time ran out. */
  | "failed";

/** Every cell filled: what is `undefined` is ignored. */
const next: Readonly<Record<PollState, Readonly<Record<RoomEvent, PollState | undefined>>>> = {
  bootstrapping: {
    met: "waitingForInput",
    prefilled: undefined,
    sent: undefined,
    failed: "failed",
  },
  waitingForInput: {
    met: undefined,
    prefilled: "transferring",
    sent: undefined,
    failed: "failed",
  },
  transferring: { met: undefined, prefilled: undefined, sent: "success", failed: "failed" },
  success: { met: undefined, prefilled: undefined, sent: undefined, failed: undefined },
  failed: { met: undefined, prefilled: undefined, sent: undefined, failed: undefined },
};

/** One rendezvous of a prefill leg and a decode engine. `Leg` and `Pull` are the edge's handles. */
export interface Room<Leg, Pull> {
  readonly key: string;
  readonly state: PollState;
  readonly leg: Leg | undefined;
  readonly pull: Pull | undefined;
}

interface Entry<Leg, Pull> {
  readonly key: string;
  state: PollState;
  leg: Leg | undefined;
  pull: Pull | undefined;
  deadline: number;
}

/**
 * Rendezvous by bootstrap room on a prefill engine: whichever side comes first waits for the other. A room is
 * forgotten when it ends, so that a number may be used again. Bounded by live requests and open pulls.
 */
export class RoomTable<Leg, Pull> {
  readonly #timeoutMs: number;
  readonly #rooms = new Map<string, Entry<Leg, Pull>>();

  constructor(timeoutMs: number) {
    this.#timeoutMs = timeoutMs;
  }

  get size(): number {
    return this.#rooms.size;
  }

  /** Rooms in this state. O(rooms). */
  count(state: PollState): number {
    let count = 0;
    for (const room of this.#rooms.values()) if (room.state === state) count++;
    return count;
  }

  get(key: string): Room<Leg, Pull> | undefined {
    return this.#rooms.get(key);
  }

  /** The prefill leg has come. Undefined when the room already has one. */
  enterLeg(key: string, leg: Leg, now: MonoMs): Room<Leg, Pull> | undefined {
    const room = this.#enter(key, now);
    if (room.leg !== undefined) return undefined;
    room.leg = leg;
    if (room.pull !== undefined) this.#step(room, "met");
    return room;
  }

  /** The decode engine has allocated and asks. Undefined when the room already has one. */
  enterPull(key: string, pull: Pull, now: MonoMs): Room<Leg, Pull> | undefined {
    const room = this.#enter(key, now);
    if (room.pull !== undefined) return undefined;
    room.pull = pull;
    if (room.leg !== undefined) this.#step(room, "met");
    return room;
  }

  /** Applies an event; true when it changed the state. Rooms that ended are forgotten. */
  apply(key: string, event: RoomEvent): boolean {
    const room = this.#rooms.get(key);
    return room !== undefined && this.#step(room, event);
  }

  /** Fails the rooms in which nobody came in time and returns them. */
  expire(now: MonoMs): Room<Leg, Pull>[] {
    const over: Entry<Leg, Pull>[] = [];
    for (const room of this.#rooms.values()) {
      if (room.state === "bootstrapping" && room.deadline <= now) over.push(room);
    }
    for (const room of over) this.#step(room, "failed");
    return over;
  }

  /** When the next room may fail for want of the other side. */
  nextExpiry(): MonoMs | undefined {
    let earliest = Infinity;
    for (const room of this.#rooms.values()) {
      if (room.state === "bootstrapping") earliest = Math.min(earliest, room.deadline);
    }
    return earliest === Infinity ? undefined : monoMs(earliest);
  }

  #enter(key: string, now: MonoMs): Entry<Leg, Pull> {
    let room = this.#rooms.get(key);
    if (room === undefined) {
      const deadline = now + this.#timeoutMs;
      room = { key, state: "bootstrapping", leg: undefined, pull: undefined, deadline };
      this.#rooms.set(key, room);
    }
    return room;
  }

  #step(room: Entry<Leg, Pull>, event: RoomEvent): boolean {
    const state = next[room.state][event];
    if (state === undefined) return false;
    room.state = state;
    if (state === "success" || state === "failed") this.#rooms.delete(room.key);
    return true;
  }
}
