import type { AnyValue, KeyValue } from "../../shared/gen/opentelemetry/proto/common/v1/common.ts";
import type { ExportTraceServiceRequest } from "../../shared/gen/opentelemetry/proto/collector/trace/v1/trace_service.ts";
import type {
  Span,
  Span_SpanKind,
  Status_StatusCode,
} from "../../shared/gen/opentelemetry/proto/trace/v1/trace.ts";
import { MeshError } from "../../shared/core/errors.ts";

type Json = Readonly<Record<string, unknown>>;

/** Depth of nested values accepted; the store keeps fewer. */
const depthMax = 16;

function refuse(path: string, expected: string, value: unknown): never {
  const given = value === null ? "null" : Array.isArray(value) ? "a list" : typeof value;
  throw new MeshError("invalid_request", `${path}: must be ${expected}, got ${given}`, {
    field: path,
  });
}

function object(value: unknown, path: string): Json {
  if (value === undefined || value === null) return {};
  if (typeof value !== "object" || Array.isArray(value)) return refuse(path, "an object", value);
  return value as Json;
}

function list<T>(value: unknown, path: string, item: (value: unknown, path: string) => T): T[] {
  if (value === undefined || value === null) return [];
  if (!Array.isArray(value)) return refuse(path, "a list", value);
  return value.map((inner: unknown, index) => item(inner, `${path}[${index.toString()}]`));
}

function text(value: unknown, path: string): string {
  if (value === undefined || value === null) return "";
  return typeof value === "string" ? value : refuse(path, "text", value);
}

function count(value: unknown, path: string): number {
  const number = value === undefined || value === null ? 0 : Number(value);
  return Number.isInteger(number) && number >= 0 && number <= 0xffffffff
    ? number
    : refuse(path, "a whole number from 0 to 4294967295", value);
}

function integer(value: unknown, path: string): bigint {
  if (value === undefined || value === null || value === "") return 0n;
  if (typeof value === "string" && /^-?\d{1,20}$/u.test(value)) return BigInt(value);
  if (typeof value === "number" && Number.isSafeInteger(value)) return BigInt(value);
  return refuse(path, "a whole number as text", value);
}

function time(value: unknown, path: string): bigint {
  const nanos = integer(value, path);
  return nanos >= 0n && nanos < 1n << 64n ? nanos : refuse(path, "nanoseconds since 1970", value);
}

function id(value: unknown, path: string): Buffer {
  const hex = text(value, path);
  if (!/^(?:[0-9a-f]{2})*$/iu.test(hex)) return refuse(path, "hex digits", value);
  return Buffer.from(hex, "hex");
}

/** An enum as a number, or as its name with the given prefix; OTLP/JSON wants numbers, some senders write names. */
function enumOf(value: unknown, path: string, names: readonly string[]): number {
  if (typeof value === "string") {
    const index = names.indexOf(value);
    return index >= 0 ? index : refuse(path, `one of ${names.join(", ")} or its number`, value);
  }
  return count(value, path);
}

const kindNames = ["UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"].map(
  (name) => `SPAN_KIND_${name}`,
);
const statusNames = ["UNSET", "OK", "ERROR"].map((name) => `STATUS_CODE_${name}`);

function double(value: unknown, path: string): number {
  const number = typeof value === "string" ? Number(value) : value;
  return typeof number === "number" ? number : refuse(path, "a number", value);
}

function anyValue(value: unknown, path: string, depth: number): AnyValue {
  if (depth > depthMax) {
    throw new MeshError(
      "invalid_request",
      `${path}: nested deeper than ${depthMax.toString()} levels`,
      {
        field: path,
      },
    );
  }
  const json = object(value, path);
  if ("stringValue" in json) {
    return { value: { $case: "stringValue", value: text(json["stringValue"], path) } };
  }
  if ("boolValue" in json)
    return { value: { $case: "boolValue", value: json["boolValue"] === true } };
  if ("intValue" in json) {
    const whole = BigInt.asIntN(64, integer(json["intValue"], path));
    return { value: { $case: "intValue", value: whole } };
  }
  if ("doubleValue" in json) {
    return { value: { $case: "doubleValue", value: double(json["doubleValue"], path) } };
  }
  if ("bytesValue" in json) {
    const bytes = Buffer.from(text(json["bytesValue"], path), "base64");
    return { value: { $case: "bytesValue", value: bytes } };
  }
  if ("arrayValue" in json) {
    const values = list(object(json["arrayValue"], path)["values"], `${path}.values`, (item, at) =>
      anyValue(item, at, depth + 1),
    );
    return { value: { $case: "arrayValue", value: { values } } };
  }
  if ("kvlistValue" in json) {
    const values = keyValues(
      object(json["kvlistValue"], path)["values"],
      `${path}.values`,
      depth + 1,
    );
    return { value: { $case: "kvlistValue", value: { values } } };
  }
  return { value: undefined };
}

function keyValues(value: unknown, path: string, depth = 0): KeyValue[] {
  return list(value, path, (item, at) => {
    const json = object(item, at);
    return {
      key: text(json["key"], `${at}.key`),
      value: anyValue(json["value"], `${at}.value`, depth),
    };
  });
}

function span(value: unknown, path: string): Span {
  const json = object(value, path);
  const at = (name: string): string => `${path}.${name}`;
  const status = object(json["status"], at("status"));
  return {
    traceId: id(json["traceId"], at("traceId")),
    spanId: id(json["spanId"], at("spanId")),
    traceState: text(json["traceState"], at("traceState")),
    parentSpanId: id(json["parentSpanId"], at("parentSpanId")),
    name: text(json["name"], at("name")),
    kind: enumOf(json["kind"], at("kind"), kindNames) as Span_SpanKind,
    startTimeUnixNano: time(json["startTimeUnixNano"], at("startTimeUnixNano")),
    endTimeUnixNano: time(json["endTimeUnixNano"], at("endTimeUnixNano")),
    attributes: keyValues(json["attributes"], at("attributes")),
    droppedAttributesCount: count(json["droppedAttributesCount"], at("droppedAttributesCount")),
    events: list(json["events"], at("events"), (inner, where) => {
      const event = object(inner, where);
      return {
        timeUnixNano: time(event["timeUnixNano"], `${where}.timeUnixNano`),
        name: text(event["name"], `${where}.name`),
        attributes: keyValues(event["attributes"], `${where}.attributes`),
        droppedAttributesCount: 0,
      };
    }),
    droppedEventsCount: count(json["droppedEventsCount"], at("droppedEventsCount")),
    links: list(json["links"], at("links"), (inner, where) => {
      const link = object(inner, where);
      return {
        traceId: id(link["traceId"], `${where}.traceId`),
        spanId: id(link["spanId"], `${where}.spanId`),
        traceState: text(link["traceState"], `${where}.traceState`),
        attributes: keyValues(link["attributes"], `${where}.attributes`),
        droppedAttributesCount: 0,
        flags: 0,
      };
    }),
    droppedLinksCount: count(json["droppedLinksCount"], at("droppedLinksCount")),
    status: {
      message: text(status["message"], at("status.message")),
      code: enumOf(status["code"], at("status.code"), statusNames) as Status_StatusCode,
    },
    flags: count(json["flags"], at("flags")),
  };
}

/**
 * An OTLP/JSON export request (opentelemetry.io/docs/specs/otlp, "JSON Protobuf Encoding": ids in hex, enums as
 * numbers, 64-bit integers as text). Unknown fields are skipped. Throws `invalid_request` naming the field.
 */
export function parseOtlpJson(text_: string): ExportTraceServiceRequest {
  let parsed: unknown;
  try {
    parsed = JSON.parse(text_);
  } catch (error) {
    throw new MeshError("invalid_request", `body is not JSON: ${(error as Error).message}`);
  }
  if (typeof parsed !== "object" || parsed === null || Array.isArray(parsed)) {
    throw new MeshError("invalid_request", 'body must be an object with "resourceSpans"');
  }
  const resourceSpans = list((parsed as Json)["resourceSpans"], "resourceSpans", (value, path) => {
    const json = object(value, path);
    const resource = object(json["resource"], `${path}.resource`);
    return {
      resource: {
        attributes: keyValues(resource["attributes"], `${path}.resource.attributes`),
        droppedAttributesCount: 0,
      },
      scopeSpans: list(json["scopeSpans"], `${path}.scopeSpans`, (inner, at) => {
        const scoped = object(inner, at);
        const scope = object(scoped["scope"], `${at}.scope`);
        return {
          scope: {
            name: text(scope["name"], `${at}.scope.name`),
            version: text(scope["version"], `${at}.scope.version`),
            attributes: [],
            droppedAttributesCount: 0,
          },
          spans: list(scoped["spans"], `${at}.spans`, span),
          schemaUrl: "",
        };
      }),
      schemaUrl: "",
    };
  });
  return { resourceSpans };
}
