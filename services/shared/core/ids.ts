declare const brand: unique symbol;

/** A nominal type: `T` at run time, distinct at compile time. */
export type Brand<T, Name extends string> = T & { readonly [brand]: Name };

/** Configured identity of one engine replica; stable for ever, its epoch changes at restarts. */
export type WorkerId = Brand<string, "WorkerId">;

/** Monotonic milliseconds from an arbitrary origin. Never compare across processes. */
export type MonoMs = Brand<number, "MonoMs">;

const workerIdPattern = /^[A-Za-z0-9._:-]{1,128}$/;

/** Whether `text` can name a worker: 1 to 128 characters of `[A-Za-z0-9._:-]`. */
export function isWorkerId(text: string): boolean {
  return workerIdPattern.test(text);
}

/** Brands a worker id. The caller has checked it with `isWorkerId` where it came from outside. */
export function workerId(text: string): WorkerId {
  return text as WorkerId;
}

/** Brands a number of monotonic milliseconds. */
export function monoMs(value: number): MonoMs {
  return value as MonoMs;
}
