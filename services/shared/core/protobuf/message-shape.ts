import { FieldCursor, wireType } from "./field-cursor.ts";

/** What the value of a field is: a number, bytes (or text), or a message of some shape. */
export type FieldShape = "varint" | "fixed64" | "fixed32" | "bytes" | MessageShape;

/** The fields of a message by number; others may occur and are passed over. */
export interface MessageShape {
  readonly fields: readonly (FieldShape | undefined)[];
}

/** Makes a shape. `fields` are by number; a function lets a shape contain itself. */
export function messageShape(
  fields:
    | Readonly<Record<number, FieldShape>>
    | ((self: MessageShape) => Readonly<Record<number, FieldShape>>),
): MessageShape {
  const list: (FieldShape | undefined)[] = [];
  const self: MessageShape = { fields: list };
  const byNumber = typeof fields === "function" ? fields(self) : fields;
  for (const [number, shape] of Object.entries(byNumber)) list[Number(number)] = shape;
  for (let i = 0; i < list.length; i++) list[i] ??= undefined;
  return self;
}

/** Nesting beyond this is left to a complete decoder. */
const depthMax = 24;

/**
 * Checks that messages are what an ordinary encoder writes for a shape, without reading their values: known fields
 * have their wire type, all is inside its message, nesting is at most 24 deep. Such a message is accepted by any
 * decoder of that shape; of one that is not, a complete decoder has to judge.
 */
export class ShapeChecker {
  readonly #cursors: FieldCursor[] = Array.from({ length: depthMax }, () => new FieldCursor());

  /** Whether `bytes[from..to)` is an ordinary message of the shape. */
  isOrdinary(shape: MessageShape, bytes: Uint8Array, from: number, to: number): boolean {
    return from === to || this.#walk(shape, bytes, from, to, 0);
  }

  #walk(shape: MessageShape, bytes: Uint8Array, from: number, to: number, depth: number): boolean {
    const cursor = this.#cursors[depth];
    if (cursor === undefined) return false;
    cursor.enter(bytes, from, to);
    const { fields } = shape;
    while (cursor.next()) {
      const expected = cursor.field < fields.length ? fields[cursor.field] : undefined;
      if (expected === undefined) continue;
      if (typeof expected === "object") {
        if (cursor.wire !== wireType.bytes) return false;
        if (!this.#walk(expected, bytes, cursor.from, cursor.to, depth + 1)) return false;
      } else if (cursor.wire !== wireType[expected]) return false;
    }
    return !cursor.odd;
  }
}
