import { h2Error } from "./codes.ts";
import { connectionFault, type Fault } from "./faults.ts";
import type { H2Limits } from "./limits.ts";

/** What a connection's deadlines ask for. */
export type DeadlineAction = Fault | "ping" | undefined;

/** How long a client may take for what it must do; times are ms of the connection's clock. */
export class ConnectionDeadlines {
  readonly #limits: H2Limits;
  readonly #startedAt: number;
  #heardAt: number;
  #busyAt: number;
  /** Since when a frame or header block has been incomplete. */
  #cutOffSince: number | undefined;
  #pingedAt: number | undefined;

  constructor(limits: H2Limits, now: number) {
    this.#limits = limits;
    this.#startedAt = now;
    this.#heardAt = now;
    this.#busyAt = now;
  }

  /** Something was read; `isCutOff` when it ended inside a frame or header block. */
  heard(isCutOff: boolean, now: number): void {
    this.#heardAt = now;
    this.#pingedAt = undefined;
    if (isCutOff) this.#cutOffSince ??= now;
    else this.#cutOffSince = undefined;
  }

  /** The socket is not being read, so that the client's time stands still. */
  hold(now: number): void {
    this.#heardAt = now;
    this.#pingedAt = undefined;
    if (this.#cutOffSince !== undefined) this.#cutOffSince = now;
  }

  /** Checks all of them; after "ping" a PING has to be sent. `agreed`: whose settings the other side has taken. */
  check(now: number, agreed: "nothing" | "theirs" | "both", hasStreams: boolean): DeadlineAction {
    const limits = this.#limits;
    if (hasStreams) this.#busyAt = now;
    if (agreed === "nothing" && now - this.#startedAt > limits.prefaceMsMax) {
      return connectionFault(h2Error.protocol, "preface_timeout", "no preface in time");
    }
    if (agreed === "theirs" && now - this.#startedAt > limits.settingsMsMax) {
      return connectionFault(
        h2Error.settingsTimeout,
        "settings_timeout",
        "SETTINGS not acknowledged",
      );
    }
    if (this.#cutOffSince !== undefined && now - this.#cutOffSince > limits.headerBlockMsMax) {
      return connectionFault(h2Error.enhanceYourCalm, "header_block_timeout", "frame cut off");
    }
    if (this.#pingedAt !== undefined) {
      return now - this.#pingedAt > limits.keepaliveTimeoutMs
        ? connectionFault(h2Error.none, "keepalive_timeout", "no answer to PING")
        : undefined;
    }
    if (limits.idleMsMax > 0 && now - this.#busyAt > limits.idleMsMax) {
      return connectionFault(h2Error.none, "idle", "idle");
    }
    if (now - this.#heardAt <= limits.keepaliveMs) return undefined;
    this.#pingedAt = now;
    return "ping";
  }
}
