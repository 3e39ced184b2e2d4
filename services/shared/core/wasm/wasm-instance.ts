/** Memory of a module. */
export interface WasmMemory {
  readonly buffer: ArrayBuffer;
  grow(pages: number): number;
}

/** Size of a page of memory, bytes. */
export const wasmPageSize = 1 << 16;

/** The part of WebAssembly that is used; the language's own declarations have none of it without a browser's. */
interface WebAssemblyApi {
  readonly Module: new (bytes: Uint8Array<ArrayBuffer>) => object;
  readonly Memory: new (options: { readonly initial: number }) => WasmMemory;
  readonly Instance: new (
    module: object,
    imports: { readonly env: { readonly memory: WasmMemory } },
  ) => { readonly exports: unknown };
}

function api(): WebAssemblyApi {
  return (globalThis as unknown as { readonly WebAssembly: WebAssemblyApi }).WebAssembly;
}

/** A module from its bytes (`assembleModule`). */
export function compileModule(bytes: Uint8Array<ArrayBuffer>): object {
  return new (api().Module)(bytes);
}

/** An instance with a memory of its own of at least `size` bytes; `exports` are the module's functions. */
export function instantiateModule(
  module: object,
  size: number,
): { readonly memory: WasmMemory; readonly exports: unknown } {
  const { Memory, Instance } = api();
  const memory = new Memory({ initial: Math.ceil(size / wasmPageSize) });
  const { exports } = new Instance(module, { env: { memory } });
  return { memory, exports };
}

/** Makes a memory at least `size` bytes large; views of it made before are of no use then. */
export function growMemory(memory: WasmMemory, size: number): void {
  const missing = size - memory.buffer.byteLength;
  if (missing > 0) memory.grow(Math.ceil(missing / wasmPageSize));
}
