import type { Placement, PlacementLeg } from "../../../shared/core/placement-token/placement.ts";
import type { RelayedBody } from "../../core/body/relayed-body.ts";
import { ScannedObject } from "../../core/body/scanned-object.ts";
import type { ResumedFrom } from "../../core/guard/guarded-stream.ts";
import type { LegSlot } from "../../core/request/leg-outcome.ts";
import type { PlannedRun } from "../../core/request/plan-run.ts";
import { TtftTimeline } from "../../core/trace/ttft-timeline.ts";
import type { ClientRequest } from "../client-exchange.ts";
import type { RelayParts } from "../relay-parts.ts";
import { RequestSpans } from "./request-spans.ts";

const nothing = new Uint8Array(0);
const noPlan: PlannedRun = { plan: { kind: "whole", body: nothing, workerId: "" } };

/** A request while it is open: the facts that everything which works on it shares. */
export class OpenRequest {
  readonly parts: RelayParts;
  readonly client: ClientRequest;
  /** When it came, ms. */
  readonly arrivedAt: number;
  /** Where it runs now. */
  placement: Placement;
  body: RelayedBody;
  /** The body as it came, for placing the request again; empty once that cannot be. */
  raw: Uint8Array;
  /** Path at which the answering engine is asked. */
  path: string;
  planned: PlannedRun = noPlan;
  readonly spans: RequestSpans;
  /** Where the time to the first byte goes; absent once it has gone. */
  timeline: TtftTimeline | undefined;
  /** When the first byte of the answer went to the client, ms; 0 before that. */
  firstByteAt = 0;

  constructor(options: {
    readonly parts: RelayParts;
    readonly client: ClientRequest;
    readonly arrivedAt: number;
    readonly placement: Placement;
    readonly body: RelayedBody;
    readonly resumed?: ResumedFrom | undefined;
  }) {
    const { resumed } = options;
    this.parts = options.parts;
    this.client = options.client;
    this.arrivedAt = options.arrivedAt;
    this.placement = options.placement;
    this.body = options.body;
    this.raw = options.client.body;
    this.path = options.client.path;
    this.timeline = new TtftTimeline(options.arrivedAt);
    this.spans = new RequestSpans(options.parts, {
      ...options,
      resumed:
        resumed === undefined
          ? undefined
          : { traceparent: resumed.traceparent, tokens: resumed.point.index },
    });
  }

  /** Whether it runs on two engines. */
  get mode(): "whole" | "pair" {
    return this.placement.legs.length === 2 ? "pair" : "whole";
  }

  /** The engine of a leg. */
  legOf(slot: LegSlot): PlacementLeg | undefined {
    const { legs } = this.placement;
    return slot === "prefill" ? legs[0] : legs[legs.length - 1];
  }

  /** From arrival to the first byte of the answer, ms; 0 before that. */
  get ttftMs(): number {
    return this.firstByteAt === 0 ? 0 : this.firstByteAt - this.arrivedAt;
  }

  /** Lets go of what only a request that can be placed again needs. */
  forget(): void {
    this.raw = nothing;
    const { kind, stream } = this.body;
    this.body = { kind, stream, object: new ScannedObject(nothing, [], { open: 0, close: 0 }) };
    this.planned = noPlan;
    this.client.bodyDone();
  }
}
