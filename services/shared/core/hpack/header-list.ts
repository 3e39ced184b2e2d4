import type { HeaderField } from "./header-field.ts";

/**
 * The fields of one header block, with what a request needs of them. Adding goes on past the limits, but keeps
 * nothing more, so that the compression state stays in step while a block that is too large costs no memory.
 */
export class HeaderList {
  readonly fields: HeaderField[] = [];
  method = "";
  path = "";
  scheme = "";
  authority = "";
  /** -1 when there is no content-length. */
  contentLength = -1;
  /** Why the list is no well-formed request (RFC 9113 §8.1.1), or undefined. */
  problem: string | undefined;
  /** Pseudo-header fields seen. */
  pseudoCount = 0;
  /** Size of all fields, as RFC 9113 §6.5.2 counts it. */
  size = 0;
  /** Number of all fields. */
  count = 0;
  #isOverLimit = false;
  /** One bit for each pseudo-header field seen. */
  #pseudoSeen = 0;

  /** Whether the block held more or larger fields than allowed. */
  get isOverLimit(): boolean {
    return this.#isOverLimit;
  }

  add(field: HeaderField, sizeMax: number, countMax: number): void {
    this.size += field.size;
    this.count++;
    if (this.size > sizeMax || this.count > countMax) {
      this.#isOverLimit = true;
      return;
    }
    this.fields.push(field);
    if (field.kind !== "plain") this.#note(field);
  }

  #note(field: HeaderField): void {
    switch (field.kind) {
      case "plain":
        return;
      case "content_length": {
        const length = Number(field.value);
        if (this.contentLength >= 0 && this.contentLength !== length) {
          this.problem = "two different values of content-length";
        }
        this.contentLength = length;
        return;
      }
      case "malformed":
        this.problem = `field ${JSON.stringify(field.name)} is not allowed or has a bad value`;
        return;
      case "unknown_pseudo":
        this.problem = `unknown pseudo-header field ${JSON.stringify(field.name)}`;
        return;
      case "method":
        this.#pseudo(field.name, 1);
        this.method = field.value;
        return;
      case "path":
        this.#pseudo(field.name, 2);
        this.path = field.value;
        return;
      case "scheme":
        this.#pseudo(field.name, 4);
        this.scheme = field.value;
        return;
      case "authority":
        this.#pseudo(field.name, 8);
        this.authority = field.value;
        return;
    }
  }

  #pseudo(name: string, bit: number): void {
    this.pseudoCount++;
    if ((this.#pseudoSeen & bit) !== 0) this.problem = `${name} occurs twice`;
    this.#pseudoSeen |= bit;
    if (this.pseudoCount !== this.fields.length) {
      this.problem = `${name} follows a regular field`;
    }
  }

  /** Why the list cannot open a request, or undefined when it can. CONNECT is not served. */
  requestProblem(): string | undefined {
    if (this.problem !== undefined) return this.problem;
    if (this.method === "") return "no :method";
    if (this.path === "") return "no :path";
    if (this.scheme === "") return "no :scheme";
    return undefined;
  }

  /** Why the list cannot end a request as its trailers, or undefined when it can. */
  trailerProblem(): string | undefined {
    if (this.problem !== undefined) return this.problem;
    return this.pseudoCount > 0 ? "pseudo-header field in trailers" : undefined;
  }

  /** Value of a field by its lower-case name, several joined by commas; undefined when it is absent. */
  get(name: string): string | undefined {
    let found: string | undefined;
    for (const field of this.fields) {
      if (field.name !== name) continue;
      found = found === undefined ? field.value : `${found},${field.value}`;
    }
    return found;
  }
}
