import { messageShape, type FieldShape, type MessageShape } from "./message-shape.ts";

/** A map field with text keys. */
export function mapEntryShape(value: FieldShape): MessageShape {
  return messageShape({ 1: "bytes", 2: value });
}

/** google.protobuf.Struct, with Value and ListValue inside. */
export const structShape: MessageShape = messageShape((struct) => {
  const value = messageShape((self) => ({
    1: "varint",
    2: "fixed64",
    3: "bytes",
    4: "varint",
    5: struct,
    6: messageShape({ 1: self }),
  }));
  return { 1: mapEntryShape(value) };
});

/** google.protobuf.Any. */
export const anyShape: MessageShape = messageShape({ 1: "bytes", 2: "bytes" });

/** google.protobuf.Duration and Timestamp. */
export const durationShape: MessageShape = messageShape({ 1: "varint", 2: "varint" });
