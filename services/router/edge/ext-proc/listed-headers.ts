import {
  requestHeaderNames,
  type RequestHeaderName,
  type RequestHeaders,
} from "../../core/exchange/request-headers.ts";

const indexOf = Object.fromEntries(
  requestHeaderNames.map((name, index) => [name, index]),
) as Readonly<Record<RequestHeaderName, number>>;

/** Listed names by their length, as bytes. */
const byLength: (readonly { readonly index: number; readonly bytes: Uint8Array }[])[] = [];
requestHeaderNames.forEach((name, index) => {
  byLength[name.length] = [...(byLength[name.length] ?? []), { index, bytes: Buffer.from(name) }];
});
for (let i = 0; i < byLength.length; i++) byLength[i] ??= [];

/** Position of a listed name among the listed names, or −1 for any other; `bytes[from..to)` is in lower case. */
export function listedHeader(bytes: Uint8Array, from: number, to: number): number {
  const names = byLength[to - from];
  if (names === undefined) return -1;
  search: for (const name of names) {
    const expected = name.bytes;
    for (let i = 0; i < expected.length; i++) {
      if (bytes[from + i] !== expected[i]) continue search;
    }
    return name.index;
  }
  return -1;
}

/** The listed headers of one request. */
export class ListedHeaders implements RequestHeaders {
  readonly #values: (string | undefined)[] = new Array<string | undefined>(
    requestHeaderNames.length,
  ).fill(undefined);

  get(name: RequestHeaderName): string | undefined {
    return this.#values[indexOf[name]];
  }

  /** Sets the value of the listed header at this position. */
  set(index: number, value: string): void {
    this.#values[index] = value;
  }
}
