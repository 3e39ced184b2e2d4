import { randomUUID } from "node:crypto";
import type { Logger } from "pino";
import type { Clock } from "../../../shared/core/clock.ts";
import type { EngineConfig } from "../../config.ts";
import type { BlockContents } from "../../core/kv-transfer/block-contents.ts";
import { layoutFingerprint } from "../../core/kv-transfer/layout.ts";
import type { LinkShape } from "../../core/kv-transfer/link-shaper.ts";
import type { EngineDriver } from "../engine-driver.ts";

import type { Fault } from "../faults.ts";
import { BootstrapClient, BootstrapServer } from "./bootstrap.ts";
import { KvConnector, type LoadListener, type PullRecord } from "./kv-connector.ts";
import type { KvState } from "./kv-metrics.ts";
import type { TransferProtocol } from "./transfer-role.ts";
import { sglangTransfer } from "./sglang-transfer.ts";
import { tensorrtTransfer } from "./tensorrt-transfer.ts";
import { vllmTransfer } from "./vllm-transfer.ts";

type KvFault = Extract<Fault, { kind: `kv_${string}` }>;

/** KV transfer of one engine process. */
export interface EngineTransfer {
  readonly connector: KvConnector;
  readonly protocol: TransferProtocol;
  /** After `listen`; 0 for what is not there. */
  readonly ports: { readonly kv: number; readonly bootstrap: number };
  listen(): Promise<void>;
  state(): KvState;
  applyFault(fault: KvFault): void;
  close(): void;
}

/** Builds the KV connector of an engine and the protocol of its flavour. */
export function createTransfer(
  config: EngineConfig,
  parts: {
    clock: Clock;
    log: Logger;
    driver: EngineDriver;
    contents: BlockContents;
    listener: LoadListener;
    pullEnded: (record: PullRecord) => void;
    engineVersion: string;
  },
): EngineTransfer {
  const { kv, flavour, model, blockSizeTokens } = config;
  const engineId = randomUUID();
  const { bytesPerBlock } = kv;
  const { engineVersion } = parts;
  const fingerprint = layoutFingerprint({
    flavour,
    engineVersion,
    model,
    blockSizeTokens,
    bytesPerBlock,
  });
  const linkTo = new Map<string, LinkShape>(kv.links.map((link) => [link.to, link]));
  const connector = new KvConnector(
    {
      identity: { engineId, instance: config.instance, fingerprint },
      bytesPerBlock,
      leaseMs: kv.leaseMs,
      handshakeTimeoutMs: kv.handshakeTimeoutMs,
      stallTimeoutMs: kv.stallTimeoutMs,
      bootstrapTimeoutMs: kv.bootstrapTimeoutMs,
      waitingTimeoutMs: kv.waitingTimeoutMs,
      loadFailurePolicy: kv.loadFailurePolicy,
      shapeOf: (instance) => linkTo.get(instance) ?? kv.link,
    },
    parts,
  );
  const ports = { kv: 0, bootstrap: 0 };
  const host = kv.advertisedHost === "" ? config.host : kv.advertisedHost;
  const address = () => ({ host, port: ports.kv });
  const layout = { pageSize: blockSizeTokens, kvCacheDtype: "auto" };
  const protocolOf = (): TransferProtocol => {
    switch (flavour) {
      case "vllm":
        return vllmTransfer({ engineId, address });
      case "sglang": {
        const client = new BootstrapClient({
          layout,
          clock: parts.clock,
          waitMsMax: kv.handshakeTimeoutMs,
        });
        return sglangTransfer({ role: config.role, lookUp: (at) => client.lookUp(at) });
      }
      case "tensorrt-llm":
        return tensorrtTransfer({ address, isHeld: (key) => connector.holds(key) });
    }
  };
  const protocol = protocolOf();
  const isBootstrap = flavour === "sglang" && config.role === "prefill";
  const bootstrap = isBootstrap ? new BootstrapServer(layout) : undefined;
  const { server } = connector;
  return {
    connector,
    protocol,
    ports,
    async listen() {
      if (bootstrap !== undefined) {
        ports.bootstrap = await bootstrap.listen(config.host, kv.bootstrapPort);
      }
      ports.kv = await server.listen(config.host, kv.port);
      bootstrap?.register(address());
    },
    state: () => ({
      counts: connector.counts,
      servedBytes: server.sentBytes,
      servedBlocks: server.sentBlocks,
      failedNotices: connector.failedNotices,
      heldHandoffs: connector.heldHandoffs,
      heldBlocks: connector.heldBlocks,
      endedHandoffs: connector.endedHandoffs,
      openLoads: connector.openLoads,
      openRooms: connector.openRooms,
    }),
    applyFault(fault) {
      switch (fault.kind) {
        case "kv_flip":
          server.faults.flips = fault.count;
          return;
        case "kv_cut":
          server.faults.cuts = fault.count;
          return;
        case "kv_stall":
          server.stall(fault.ms);
          return;
        case "kv_link":
          connector.reshape(fault);
          return;
      }
    },
    close() {
      bootstrap?.close();
      connector.close();
    },
  };
}
