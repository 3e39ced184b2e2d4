import { z } from "zod";
import { admissionDefaults, type AdmissionOptions } from "./core/admission/options.ts";
import { roomDefaults, type RoomOptions } from "./core/admission/worker-rooms.ts";

const name = z
  .string()
  .regex(/^[A-Za-z0-9._-]{1,64}$/, "must be 1 to 64 of A-Z, a-z, 0-9, ., _ and -");
/** Envoy lets a wait last at most 300 s (`timeouts.routerMessageMsMax`); answers need a moment. */
const waitMsMaxMax = 290_000;
const [standard] = admissionDefaults.classes;

const Class = z.strictObject({
  name,
  /** Higher goes first, always; a number in the priority header picks the class at or next below it. */
  priority: z.number().int().min(-1_000_000).max(1_000_000).default(0),
  /** Share among classes of one priority. */
  weight: z.number().min(0.001).max(1_000_000).default(1),
  /** Time to first token that requests ask for when they name none, ms; 0 for none. */
  ttftMs: z.number().int().min(0).max(3_600_000).default(0),
  /** Time between tokens likewise, ms; 0 for none. */
  itlMs: z.number().min(0).max(60_000).default(0),
  /** Longest wait, ms; 0 refuses at once when no worker has room. */
  waitMsMax: z
    .number()
    .int()
    .min(0)
    .max(waitMsMaxMax)
    .default(standard?.waitMsMax ?? 5_000),
});

const terms = {
  /** Share among the tenants of a class. */
  weight: z.number().min(0.001).max(1_000_000).default(1),
  /** Requests a second; 0 for no limit. */
  requestsPerSecond: z.number().min(0).default(0),
  /** Uncached prompt tokens and expected answer tokens a second; 0 for no limit. */
  tokensPerSecond: z.number().min(0).default(0),
};

/** Settings of admission; the defaults make one class for all, in which nothing waits below saturation. */
export const AdmissionConfig = z
  .strictObject({
    /** Classes of requests; the header x-kvmesh-priority names one. */
    classes: z
      .array(Class)
      .min(1)
      .max(16)
      .refine((list) => new Set(list.map((c) => c.name)).size === list.length, "names must differ")
      .default([...admissionDefaults.classes]),
    /** Class of requests that name none; empty means the first. */
    defaultClass: z.string().default(""),
    /** Weight and limits by tenant (header x-kvmesh-tenant). */
    tenants: z.record(z.string().min(1).max(128), z.strictObject(terms)).default({}),
    tenantDefault: z
      .strictObject({
        /** Share among the tenants of a class, of tenants not named. */
        weight: terms.weight,
        /** Requests a second of each; 0 for no limit. */
        requestsPerSecond: terms.requestsPerSecond,
        /** Uncached prompt tokens and expected answer tokens a second of each; 0 for no limit. */
        tokensPerSecond: terms.tokensPerSecond,
      })
      .prefault({}),
    /** Tenants with an account of their own, in each class of a pool. */
    tenantsMax: z.number().int().min(1).max(100_000).default(admissionDefaults.tenantsMax),
    /** Requests that may wait in one pool. */
    countMax: z.number().int().min(0).max(100_000).default(admissionDefaults.countMax),
    /** Memory that they may hold, bytes. */
    bytesMax: z.number().int().min(0).default(admissionDefaults.bytesMax),
    /** Share of both that one tenant may have. */
    tenantShareMax: z.number().min(0).max(1).default(admissionDefaults.tenantShareMax),
    /** A class whose queue has not been empty for so long, or for 30 usual prompts, is overloaded, ms. */
    burstMs: z.number().int().min(0).max(600_000).default(admissionDefaults.burstMs),
    /** Longest predicted wait in an overloaded class, ms; 0 follows the usual prompt. */
    overloadWaitMs: z
      .number()
      .int()
      .min(0)
      .max(waitMsMaxMax)
      .default(admissionDefaults.overloadWaitMs),
    worker: z
      .strictObject({
        /** Prefill work that a worker may have before a request sent to it, ms; 0 follows the usual prompt. */
        queueMsTarget: z.number().int().min(0).max(600_000).default(roomDefaults.queueMsTarget),
        /** Requests that one worker may have open. */
        openMax: z.number().int().min(1).max(100_000).default(roomDefaults.openMax),
        /** Share of a worker's KV capacity that may be planned for. */
        kvRatioMax: z.number().min(0.01).max(1).default(roomDefaults.kvRatioMax),
        /** Share of a busy worker's prefill time that is handed out. */
        busyRatioMax: z.number().min(0.1).max(1).default(roomDefaults.busyRatioMax),
      })
      .prefault({}),
  })
  .refine(
    ({ classes, defaultClass }) =>
      defaultClass === "" || classes.some((c) => c.name === defaultClass),
    { path: ["defaultClass"], message: "must be the name of one of admission.classes" },
  )
  .prefault({});

/** Settings as the core takes them. */
export function admissionFromConfig(config: z.infer<typeof AdmissionConfig>): {
  readonly admission: AdmissionOptions;
  readonly rooms: RoomOptions;
} {
  const { worker, tenants, defaultClass, ...rest } = config;
  const [first] = rest.classes;
  return {
    admission: {
      ...rest,
      defaultClass: defaultClass === "" ? (first?.name ?? "") : defaultClass,
      tenants: new Map(Object.entries(tenants)),
    },
    rooms: worker,
  };
}
