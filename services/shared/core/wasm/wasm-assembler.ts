/**
 * Writes WebAssembly as bytes, for the few functions that need vector instructions: small enough to be read here, so that
 * no compiler is needed to build them. Opcodes as in the WebAssembly core specification 2.0, section 5 (binary format).
 */

/** Instructions as bytes. */
export type Code = readonly number[];

/** Types of values. */
export const wasmTypes = { i32: 0x7f, i64: 0x7e, v128: 0x7b } as const;

/** A whole number in LEB128, signed. */
function signed(value: bigint): number[] {
  const bytes: number[] = [];
  let rest = value;
  for (;;) {
    const low = Number(BigInt.asUintN(7, rest));
    rest >>= 7n;
    if ((rest === 0n && (low & 0x40) === 0) || (rest === -1n && (low & 0x40) !== 0)) {
      return [...bytes, low];
    }
    bytes.push(low | 0x80);
  }
}

/** A whole number in LEB128, not negative. */
function unsigned(value: number): number[] {
  const bytes: number[] = [];
  let rest = value;
  while (rest > 0x7f) {
    bytes.push((rest & 0x7f) | 0x80);
    rest >>>= 7;
  }
  return [...bytes, rest];
}

/** An instruction after its operands. */
function after(...bytes: readonly number[]): (...operands: readonly Code[]) => Code {
  return (...operands) => [...operands.flat(), ...bytes];
}

/** A vector instruction after its operands. */
function vector(opcode: number): (...operands: readonly Code[]) => Code {
  return after(0xfd, ...unsigned(opcode));
}

const noType = 0x40;

/** Instructions, each written after its operands; names are those of the text format. */
export const wasm = {
  get: (local: number): Code => [0x20, ...unsigned(local)],
  set: (local: number, value: Code): Code => [...value, 0x21, ...unsigned(local)],
  i32: (value: number): Code => [0x41, ...signed(BigInt(value))],
  i64: (value: bigint): Code => [0x42, ...signed(BigInt.asIntN(64, value))],
  block: (...body: readonly Code[]): Code => [0x02, noType, ...body.flat(), 0x0b],
  loop: (...body: readonly Code[]): Code => [0x03, noType, ...body.flat(), 0x0b],
  if: (condition: Code, ...body: readonly Code[]): Code => [
    ...condition,
    0x04,
    noType,
    ...body.flat(),
    0x0b,
  ],
  br: (depth: number): Code => [0x0c, depth],
  ifElse: (condition: Code, then: Code, otherwise: Code): Code => [
    ...condition,
    0x04,
    noType,
    ...then,
    0x05,
    ...otherwise,
    0x0b,
  ],
  brIf: (depth: number, condition: Code): Code => [...condition, 0x0d, depth],
  return: (value: Code): Code => [...value, 0x0f],
  load8: (address: Code, offset = 0): Code => [...address, 0x2d, 0, ...unsigned(offset)],
  load32: (address: Code, offset = 0): Code => [...address, 0x28, 0, ...unsigned(offset)],
  load64: (address: Code, offset = 0): Code => [...address, 0x29, 0, ...unsigned(offset)],
  store8: (address: Code, value: Code, offset = 0): Code => [
    ...address,
    ...value,
    0x3a,
    0,
    ...unsigned(offset),
  ],
  store32: (address: Code, value: Code, offset = 0): Code => [
    ...address,
    ...value,
    0x36,
    0,
    ...unsigned(offset),
  ],
  store64: (address: Code, value: Code, offset = 0): Code => [
    ...address,
    ...value,
    0x37,
    0,
    ...unsigned(offset),
  ],
  call: (index: number, ...operands: readonly Code[]): Code => [
    ...operands.flat(),
    0x10,
    ...unsigned(index),
  ],
  select: after(0x1b),
  eqz: after(0x45),
  eq: after(0x46),
  ne: after(0x47),
  ltS: after(0x48),
  gtS: after(0x4a),
  leS: after(0x4c),
  geS: after(0x4e),
  geU: after(0x4f),
  ctz: after(0x68),
  add: after(0x6a),
  sub: after(0x6b),
  mul: after(0x6c),
  and: after(0x71),
  or: after(0x72),
  xor: after(0x73),
  shl: after(0x74),
  shrU: after(0x76),
  eqz64: after(0x50),
  clz64: after(0x79),
  ctz64: after(0x7a),
  add64: after(0x7c),
  sub64: after(0x7d),
  mul64: after(0x7e),
  and64: after(0x83),
  or64: after(0x84),
  xor64: after(0x85),
  shl64: after(0x86),
  shrU64: after(0x88),
  wrap: after(0xa7),
  extendU: after(0xad),
  loadV: (address: Code, offset = 0): Code => [...address, 0xfd, 0, 0, ...unsigned(offset)],
  storeV: (address: Code, value: Code, offset = 0): Code => [
    ...address,
    ...value,
    0xfd,
    0x0b,
    0,
    ...unsigned(offset),
  ],
  constV: (bytes: readonly number[]): Code => [0xfd, 0x0c, ...bytes],
  swizzle: vector(0x0e),
  splat: vector(0x0f),
  splat32: vector(0x11),
  lane32: (lane: number, value: Code): Code => [...value, 0xfd, 0x1b, lane],
  eq32: vector(0x37),
  bitmask32: vector(0xa4),
  min32: vector(0xb6),
  lane64: (lane: number, value: Code): Code => [...value, 0xfd, 0x1d, lane],
  eqBytes: vector(0x23),
  neBytes: vector(0x24),
  ltBytesU: vector(0x26),
  andV: vector(0x4e),
  orV: vector(0x50),
  xorV: vector(0x51),
  anyTrue: vector(0x53),
  subBytes: vector(0x71),
  setByte: (lane: number, value: Code, byte: Code): Code => [...value, ...byte, 0xfd, 0x17, lane],
  bitmask: vector(0x64),
  shrBytesU: vector(0x6d),
} as const;

/** A function of a module, exported under its name: all parameters are i32, so is its result. */
export interface WasmFunction {
  readonly name: string;
  readonly parameters: number;
  /** Types of its other locals, in their order. */
  readonly locals: readonly number[];
  readonly body: Code;
}

function section(id: number, items: readonly (readonly number[])[]): number[] {
  const content = [...unsigned(items.length), ...items.flat()];
  return [id, ...unsigned(content.length), ...content];
}

function name(text: string): number[] {
  return [...unsigned(text.length), ...Array.from(text, (c) => c.charCodeAt(0))];
}

/** A module of functions that share a memory imported as `env.memory`. */
export function assembleModule(functions: readonly WasmFunction[]): Uint8Array<ArrayBuffer> {
  const types = functions.map(({ parameters }) => [
    0x60,
    ...unsigned(parameters),
    ...new Array<number>(parameters).fill(wasmTypes.i32),
    1,
    wasmTypes.i32,
  ]);
  const bodies = functions.map(({ locals, body }) => {
    const code = [
      ...unsigned(locals.length),
      ...locals.flatMap((type) => [1, type]),
      ...body,
      0x0b,
    ];
    return [...unsigned(code.length), ...code];
  });
  return Uint8Array.from([
    ...[0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0],
    ...section(1, types),
    ...section(2, [[...name("env"), ...name("memory"), 0x02, 0x00, 1]]),
    ...section(
      3,
      functions.map((_, i) => unsigned(i)),
    ),
    ...section(
      7,
      functions.map((f, i) => [...name(f.name), 0x00, ...unsigned(i)]),
    ),
    ...section(10, bodies),
  ]);
}
