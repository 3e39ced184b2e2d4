import { messageShape, type FieldShape, type MessageShape } from "./message-shape.ts";

/** A map field with text keys. */
export function mapEntryShape(value: FieldShape): MessageShape {
  return messageShape({ 1: "bytes", 2: value });
}

/** google.protobuf.Value, with Struct and ListValue inside. */
export const valueShape: MessageShape = messageShape((value) => ({
  1: "varint",
  2: "fixed64",
  3: "bytes",
  4: "varint",
  5: messageShape({ 1: mapEntryShape(value) }),
  6: messageShape({ 1: value }),
}));

/** google.protobuf.Struct. */
export const structShape: MessageShape = messageShape({ 1: mapEntryShape(valueShape) });

/** google.protobuf.Any. */
export const anyShape: MessageShape = messageShape({ 1: "bytes", 2: "bytes" });

/** google.protobuf.Duration and Timestamp. */
export const durationShape: MessageShape = messageShape({ 1: "varint", 2: "varint" });
