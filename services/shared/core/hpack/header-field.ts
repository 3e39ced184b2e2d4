/** What a request's reader has to know about a field; found once when the field is read, not once per request. */
export type FieldKind =
  | "plain"
  | "method"
  | "scheme"
  | "authority"
  | "path"
  | "content_length"
  | "unknown_pseudo"
  | "malformed";

/** One header field. The same object is shared by every request that refers to its table entry. */
export class HeaderField {
  readonly name: string;
  readonly value: string;
  readonly kind: FieldKind;

  /** Both strings hold one octet per character. */
  constructor(name: string, value: string) {
    this.name = name;
    this.value = value;
    this.kind = kindOf(name, value);
  }

  /** What it counts in a table and in a header list (RFC 7541 §4.1). */
  get size(): number {
    return this.name.length + this.value.length + 32;
  }
}

/** Fields that speak of the connection and have no place in HTTP/2 (RFC 9113 §8.2.2). */
const connectionFields: ReadonlySet<string> = new Set([
  "connection",
  "keep-alive",
  "proxy-connection",
  "transfer-encoding",
  "upgrade",
]);

const isToken = new Uint8Array(256);
for (const char of "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz") {
  isToken[char.charCodeAt(0)] = 1;
}

function isName(name: string, from: number): boolean {
  if (name.length === from) return false;
  for (let i = from; i < name.length; i++) {
    if (isToken[name.charCodeAt(i)] !== 1) return false;
  }
  return true;
}

function isValue(value: string): boolean {
  for (let i = 0; i < value.length; i++) {
    const code = value.charCodeAt(i);
    if (code === 0 || code === 10 || code === 13) return false;
  }
  const first = value.charCodeAt(0);
  const last = value.charCodeAt(value.length - 1);
  return first !== 32 && first !== 9 && last !== 32 && last !== 9;
}

/** Judges one field by RFC 9113 §8.2.1, §8.2.2 and §8.3. */
function kindOf(name: string, value: string): FieldKind {
  if (!isValue(value)) return "malformed";
  if (name.charCodeAt(0) === 58) {
    switch (name) {
      case ":method":
        return "method";
      case ":scheme":
        return "scheme";
      case ":authority":
        return "authority";
      case ":path":
        return "path";
      default:
        return "unknown_pseudo";
    }
  }
  if (!isName(name, 0) || connectionFields.has(name)) return "malformed";
  if (name === "te" && value !== "trailers") return "malformed";
  if (name === "content-length") return /^\d{1,15}$/.test(value) ? "content_length" : "malformed";
  return "plain";
}
