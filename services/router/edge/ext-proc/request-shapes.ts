import { messageShape } from "../../../shared/core/protobuf/message-shape.ts";
import {
  anyShape,
  mapEntryShape,
  structShape,
} from "../../../shared/core/protobuf/well-known-shapes.ts";

/** envoy.config.core.v3.Metadata. */
export const metadataShape = messageShape({
  1: mapEntryShape(structShape),
  2: mapEntryShape(anyShape),
});

/** An entry of ProcessingRequest.attributes. */
export const attributesEntryShape = mapEntryShape(structShape);

/** envoy.service.ext_proc.v3.HttpTrailers. */
export const trailersShape = messageShape({
  1: messageShape({ 1: messageShape({ 1: "bytes", 2: "bytes", 3: "bytes" }) }),
});
