import { messageShape } from "../../../shared/core/protobuf/message-shape.ts";
import { anyShape, mapEntryShape } from "../../../shared/core/protobuf/well-known-shapes.ts";

/** envoy.config.core.v3.Address. */
export const addressShape = messageShape({
  1: messageShape({ 1: "varint", 2: "bytes", 3: "varint", 4: "bytes" }),
  2: messageShape({ 1: "bytes", 2: "varint" }),
});

/** A map from text to text. */
export const textEntryShape = mapEntryShape("bytes");

/** A map from text to google.protobuf.Any. */
export const anyEntryShape = mapEntryShape(anyShape);
