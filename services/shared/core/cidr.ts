/** An address range, parsed. */
export interface Cidr {
  /** The text it came from. */
  readonly text: string;
  readonly bits: bigint;
  readonly prefix: number;
  readonly width: 32 | 128;
}

function parseIpv4(text: string): bigint | undefined {
  const match = /^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})$/.exec(text);
  if (match === null) return undefined;
  let bits = 0n;
  for (const part of match.slice(1)) {
    const value = Number(part);
    if (value > 255) return undefined;
    bits = (bits << 8n) | BigInt(value);
  }
  return bits;
}

function parseIpv6(text: string): bigint | undefined {
  const halves = text.split("::");
  if (halves.length > 2 || !/^[0-9a-fA-F:.]+$/.test(text)) return undefined;
  const groupsOf = (half: string): string[] => (half === "" ? [] : half.split(":"));
  const head = groupsOf(halves[0] ?? "");
  const tail = groupsOf(halves[1] ?? "");
  const missing = 8 - head.length - tail.length;
  if (halves.length === 1 ? missing !== 0 : missing < 1) return undefined;
  let bits = 0n;
  for (const group of [...head, ...Array<string>(missing).fill("0"), ...tail]) {
    if (!/^[0-9a-fA-F]{1,4}$/.test(group)) return undefined;
    bits = (bits << 16n) | BigInt(parseInt(group, 16));
  }
  return bits;
}

function parseIp(text: string): { bits: bigint; width: 32 | 128 } | undefined {
  const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(text);
  const v4 = parseIpv4(mapped?.[1] ?? text);
  if (v4 !== undefined) return { bits: v4, width: 32 };
  const v6 = parseIpv6(text);
  return v6 === undefined ? undefined : { bits: v6, width: 128 };
}

/** Parses `10.0.0.0/8`, `::1/128` or a single address; `undefined` when it is neither. */
export function parseCidr(text: string): Cidr | undefined {
  const [address = "", prefixText, ...rest] = text.split("/");
  const ip = parseIp(address);
  if (ip === undefined || rest.length > 0) return undefined;
  if (prefixText !== undefined && !/^\d{1,3}$/.test(prefixText)) return undefined;
  const prefix = prefixText === undefined ? ip.width : Number(prefixText);
  if (prefix > ip.width) return undefined;
  return { text, bits: ip.bits, prefix, width: ip.width };
}

/** Whether one of the ranges holds the address; false for anything that is no IP address. */
export function inCidrs(ranges: readonly Cidr[], address: string): boolean {
  const ip = parseIp(address);
  if (ip === undefined) return false;
  return ranges.some((range) => {
    if (range.width !== ip.width) return false;
    const shift = BigInt(range.width - range.prefix);
    return ip.bits >> shift === range.bits >> shift;
  });
}
