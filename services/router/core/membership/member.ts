import type { MonoMs, WorkerId } from "../../../shared/core/ids.ts";
import type { StepModel } from "../../../shared/core/step-model.ts";

/** Epoch of a member; compared field by field. */
export interface MemberEpoch {
  /** Start of the worker process, milliseconds since 1970. */
  readonly workerStartMs: number;
  /** Engine lives that this worker process has seen. */
  readonly engineLife: number;
}

/** What an engine is asked to do. */
export type MemberRole = "both" | "prefill" | "decode";

/** A worker's facts, as its hello states them. */
export interface MemberFacts {
  readonly workerId: string;
  readonly dpRank: number;
  readonly epoch: MemberEpoch;
  readonly pool: string;
  /** ip:port of the engine. */
  readonly endpoint: string;
  readonly role: MemberRole;
  /** Served names; the first is the model's main name and the root of its block hashes. */
  readonly models: readonly string[];
  readonly contextTokensMax: number;
  /** Hex SHA-256; empty when the worker has no tokenizer file. */
  readonly tokenizerSha256: string;
  /** Hex SHA-256; empty when the model has no chat template. */
  readonly chatTemplateSha256: string;
  readonly addsSpecialTokens: boolean;
  readonly bosToken: string;
  readonly eosToken: string;
  readonly engineBlockSizeTokens: number;
  readonly capacityTokens: number;
  readonly prefixCaching: boolean;
  readonly engineName: string;
  readonly engineVersion: string;
  readonly stepTokensMax: number;
  /** Sequences that it runs at once (vLLM's `max_num_seqs`); absent or 0 when unknown. */
  readonly runningRequestsMax?: number;
  readonly stepModel: StepModel | undefined;
  readonly ready: boolean;
  /** KV transfer connector; absent or empty for an engine without one. */
  readonly kvTransfer?: string;
  /** What a peer engine needs beside the address to fetch KV, host:port; absent or empty for nothing. */
  readonly kvBootstrap?: string;
  /** Bytes that a transfer moves for one token; absent or 0 when unknown. */
  readonly kvBytesPerToken?: number;
}

/** A member as another router tells of it. */
export interface MemberNotice {
  readonly workerId: string;
  readonly dpRank: number;
  readonly epoch: MemberEpoch;
  readonly pool: string;
  readonly endpoint: string;
  readonly models: readonly string[];
  readonly held: boolean;
  readonly goodbye: boolean;
  readonly ready: boolean;
  /** Absent for both. */
  readonly role?: MemberRole;
}

/** A member in this router's view, the union of all routers' streams. */
export interface Member {
  readonly key: WorkerId;
  readonly workerId: string;
  readonly dpRank: number;
  epoch: MemberEpoch;
  pool: string;
  endpoint: string;
  models: readonly string[];
  ready: boolean;
  /** As its own stream says, else as peers do. */
  role: MemberRole;
  /** Facts from its own stream to this router; absent when only peers have told of it. */
  facts: MemberFacts | undefined;
  /** Slot in the KV index while this router knows its blocks. */
  slot: number | undefined;
  /** Its live stream to this router. */
  streamId: number | undefined;
  /** Routers other than this one that hold its stream. */
  readonly heldBy: Set<string>;
  /** Since when nobody holds its stream. */
  unheldSince: MonoMs | undefined;
  /** Its block view is incomplete: a snapshot is awaited. */
  suspect: boolean;
  appliedSeq: number;
  resyncs: number;
  /** When its blocks were last known to be up to date: by a change of them, or by a report that none came before. */
  blocksHeardAt: MonoMs;
}

/** Key of a member: the worker id, with the rank for ranks above 0. */
export function memberKey(workerId: string, dpRank: number): WorkerId {
  return (dpRank === 0 ? workerId : `${workerId}/${dpRank}`) as WorkerId;
}

/** Negative when `a` is older than `b`, 0 when equal. */
export function compareEpochs(a: MemberEpoch, b: MemberEpoch): number {
  return a.workerStartMs - b.workerStartMs || a.engineLife - b.engineLife;
}
